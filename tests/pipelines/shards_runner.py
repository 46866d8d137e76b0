"""A shard writer in a process of its own, to be killed: `python shards_runner.py CLIPS OUT WORK`; prints the summary."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipelines.shards.form import ShardConfig
from pipelines.shards.writer import build_shards

CONFIG = ShardConfig(short_side=32, shard_bytes=12_000)


def main() -> None:
    clips, out, work = (Path(argument) for argument in sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(build_shards(out, clips, clips, config=CONFIG, work=work, progress=lambda *_: None)))


if __name__ == "__main__":
    main()
