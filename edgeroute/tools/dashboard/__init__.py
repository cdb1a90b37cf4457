"""Live view of a router: a local web page (`web_page.serve`, `in_process.Dashboard`), and in a terminal (`terminal_view.Top`)."""
