"""Jobs that are given out together, and how long they wait for each other."""

from __future__ import annotations

from served import PATIENCE, Desk, run, settle, works


def test_without_batching_jobs_come_alone() -> None:
    async def main() -> None:
        desk = Desk()
        waiting = [desk.put(name) for name in "ab"]
        await settle()
        assert works(desk.take()) == ["a"]
        assert works(desk.take()) == ["b"]
        for task in waiting:
            task.cancel()

    run(main())


def test_jobs_are_put_together_up_to_the_limit_and_none_overtakes() -> None:
    async def main() -> None:
        desk = Desk(limit=4)
        waiting = [
            desk.put(name, rows=rows)
            for name, rows in [("a", 1), ("b", 2), ("c", 2), ("d", 1), ("e", 9), ("f", 1)]
        ]
        await settle()
        taken = [works(desk.take()) for _ in range(4)]
        assert taken == [["a", "b"], ["c", "d"], ["e"], ["f"]]
        for task in waiting:
            task.cancel()

    run(main())


def test_a_job_that_wants_to_be_alone_is() -> None:
    async def main() -> None:
        desk = Desk(limit=4)
        waiting = [desk.put(name, alone=name in "bc") for name in "abcde"]
        await settle()
        taken = [works(desk.take()) for _ in range(4)]
        assert taken == [["a"], ["b"], ["c"], ["d", "e"]]
        for task in waiting:
            task.cancel()

    run(main())


def test_a_job_waits_for_others_until_the_batch_is_full() -> None:
    async def main() -> None:
        desk = Desk(limit=2, delay=3600)
        first = desk.put("a", timeout=7200)
        await settle()
        desk.clock.read.clear()
        taken = desk.taking()
        assert desk.clock.read.wait(PATIENCE)  # it has looked, and found too few
        second = desk.put("b", timeout=7200)
        await settle()
        assert taken.get(timeout=PATIENCE) == ["a", "b"]
        first.cancel()
        second.cancel()

    run(main())


def test_a_job_does_not_wait_longer_than_the_delay() -> None:
    async def main() -> None:
        desk = Desk(limit=2, delay=0.01)
        waiting = desk.put("a")
        await settle()
        desk.clock.read.clear()
        taken = desk.taking()
        assert desk.clock.read.wait(PATIENCE)
        desk.clock.now += 1
        assert taken.get(timeout=PATIENCE) == ["a"]
        waiting.cancel()

    run(main())


def test_a_job_cancelled_while_it_waits_for_others_is_not_taken_with_them() -> None:
    async def main() -> None:
        desk = Desk(limit=2, delay=3600)
        first = desk.put("a", timeout=7200)
        await settle()
        desk.clock.read.clear()
        taken = desk.taking()
        assert desk.clock.read.wait(PATIENCE)
        first.cancel()
        await settle()
        others = [desk.put(name, timeout=7200) for name in "bc"]
        await settle()
        assert taken.get(timeout=PATIENCE) == ["b", "c"]
        for task in others:
            task.cancel()

    run(main())


def test_what_does_not_fit_into_a_batch_is_taken_by_another_thread() -> None:
    async def main() -> None:
        desk = Desk(limit=2, delay=3600)
        both = [desk.taking(), desk.taking()]
        small = desk.put("a", rows=1, timeout=7200)
        await settle()
        large = desk.put("b", rows=2, timeout=7200)
        await settle()
        taken = [thread.get(timeout=PATIENCE) for thread in both]
        assert sorted(taken) == [["a"], ["b"]]
        small.cancel()
        large.cancel()

    run(main())
