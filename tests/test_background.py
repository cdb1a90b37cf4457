"""Background jobs of audits: what waits is begun once there is room, whoever looked last."""

from __future__ import annotations

from edgeroute.trials.shadow_statistics_and_job_queue import Background, Job


def test_a_job_that_was_looked_at_while_another_ended_is_not_forgotten():
    """One caller finds no room for it; meanwhile the other job begins and ends, and nobody looks after that."""
    ran = []
    jobs = Background(lambda job: (job(), True)[1])

    def room():
        if not ran:
            jobs.start()  # by another caller
            return False
        return True

    jobs.put(Job(lambda: ran.append("first"), room))
    jobs.put(Job(lambda: ran.append("second"), lambda: True))
    jobs.start()
    assert ran == ["second", "first"]
    assert jobs.busy == 0


def test_without_room_it_waits_and_is_not_looked_at_again_and_again():
    """Until somebody starts what waits."""
    looks, ran, free = [], [], []
    jobs = Background(lambda job: (job(), True)[1])
    jobs.put(Job(lambda: ran.append(1), lambda: (looks.append(1), bool(free))[1]))
    jobs.start()
    assert (len(looks), ran, jobs.busy) == (1, [], 1)
    free.append(1)
    jobs.start()
    assert (ran, jobs.busy) == ([1], 0)
