"""Replies that are read piece by piece."""


async def taken(opened, on_piece=lambda _, __: None, until=None):
    """Reads a reply whose head has come -> (status, headers, pieces).

    `on_piece(response, piece)` may return True, to leave, or the instant by which the next piece must come.
    """
    found = []
    async with opened as response:
        while (piece := await response.read(until)) is not None:
            found.append(piece)
            until = on_piece(response, piece)
            if until is True:
                break
        return response.status, response.headers, found
