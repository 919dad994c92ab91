"""Floor 4: the worker's side of the queue, in one trip a turn: what is over goes, and what there is room for comes.

A job that is taken is hidden at once: its score lies ahead until its worker says more, so that no worker's next look
has to pass it by. Should that worker die, mark and score end by themselves, and the job is due again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any, Final, Protocol

import orjson
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from redis.asyncio import Redis

from service.signals import QUEUE_NAME

HIDDEN_FOR_MS: Final = 60_000
# ARGV: now, the slots that are free, for how long a mark holds, how many marked ones to pass by, then of each job that
# is over its name and, where it is to run again, its score. Returns name, score and data (0: not a string) of each.
TURN: Final = f"""
local queue, now, slots, lasts, bound = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
for n = 5, #ARGV, 2 do
  local name, score = ARGV[n], ARGV[n + 1]
  redis.call('del', '{in_progress_key_prefix}' .. name)
  if score == '' then
    redis.call('zrem', queue, name)
    redis.call('del', '{job_key_prefix}' .. name, '{retry_key_prefix}' .. name)
  else
    redis.call('zadd', queue, 'XX', score, name)
  end
end
local taken, passed = {{}}, 0
while #taken < slots and passed < bound do
  local due = redis.call('zrangebyscore', queue, '-inf', now, 'WITHSCORES', 'LIMIT', passed, slots - #taken)
  if #due == 0 then break end
  for n = 1, #due, 2 do
    local name = due[n]
    if redis.call('set', '{in_progress_key_prefix}' .. name, '1', 'NX', 'PX', lasts) then
      redis.call('zadd', queue, 'XX', now + lasts, name)
      local data = redis.pcall('get', '{job_key_prefix}' .. name)
      taken[#taken + 1] = {{name, due[n + 1], type(data) == 'table' and 0 or data}}
    else
      passed = passed + 1
    end
  end
end
return taken
"""
# Hide the named jobs for as long again, those that are still marked.
KEEP: Final = f"""
for n = 3, #ARGV do
  if redis.call('pexpire', '{in_progress_key_prefix}' .. ARGV[n], ARGV[2]) == 1 then
    redis.call('zadd', KEYS[1], 'XX', ARGV[1] + ARGV[2], ARGV[n])
  end
end
"""


class Runnable(Protocol):
    """What arq knows of one of our functions."""

    coroutine: Any


class UnreadableJob(Exception):
    """No worker can run it; its text says why."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A job that this process has marked as its own. Without data it expired, or its end crossed our look."""

    name: bytes
    score: float
    data: bytes | int | None


@dataclass(frozen=True, slots=True)
class Order:
    """What a job asks for."""

    function: str
    arguments: list[Any]
    enqueued_ms: int


class Turnstile:
    """One queue's, for one worker; `bound` is how many jobs of others a look passes by."""

    def __init__(self, redis: Redis, *, bound: int) -> None:
        self._turn = redis.register_script(TURN)
        self._keep = redis.register_script(KEEP)
        self._bound = bound

    async def turn(self, over: Mapping[bytes, float | None], *, slots: int, now_ms: int) -> list[Taken]:
        """Let go of the jobs that are over, with the score of those that are to run again, and take others."""
        arguments: list[Any] = [now_ms, slots, HIDDEN_FOR_MS, self._bound]
        for name, score in over.items():
            arguments += (name, "" if score is None else score)
        return [Taken(name, float(score), data) for name, score, data in await self._turn([QUEUE_NAME], arguments)]

    async def keep(self, names: Sequence[bytes], *, now_ms: int) -> None:
        """Say that these still run here."""
        await self._keep([QUEUE_NAME], [now_ms, HIDDEN_FOR_MS, *names])


def read(data: bytes | int, functions: Mapping[str, Runnable]) -> Order:
    """What the job asks for. Raises `UnreadableJob` for one that is none of ours."""
    if isinstance(data, int):
        raise UnreadableJob("not a job's key")
    try:
        job: Any = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise UnreadableJob("not JSON") from None
    if not isinstance(job, dict) or not isinstance(job.get("f"), str):
        raise UnreadableJob("not a job")
    if job["f"] not in functions:
        raise UnreadableJob("unknown function")
    arguments, known = job.get("a"), _known(functions[job["f"]].coroutine)
    if not isinstance(arguments, list) or job.get("k") != {} or len(arguments) != len(known):
        raise UnreadableJob("wrong arguments")
    if not isinstance(job.get("et"), int) or not isinstance(job.get("t"), int | None):
        raise UnreadableJob("not a job")
    if not all(map(isinstance, arguments, known)):
        raise UnreadableJob("wrong arguments")
    return Order(job["f"], arguments, job["et"])


@cache
def _known(run: Any) -> tuple[type, ...]:
    """The types of what a job's function takes beside its ctx."""
    return tuple(parameter.annotation for parameter in list(signature(run).parameters.values())[1:])
