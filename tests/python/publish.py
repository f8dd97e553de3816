"""Publishes a job and waits for its end, with nats-py and the JSON Schemas alone.

usage: publish.py NATS_URL SCHEMAS
"""

import asyncio
import json
import pathlib
import sys

import jsonschema
import nats

MESSAGE = {
    "apiVersion": "prewarm.dev/v1",
    "kind": "PrewarmJob",
    "metadata": {"name": "from-python", "labels": {"client": "nats-py"}},
    "spec": {"images": ["registry.example.com/app:1"], "parallelism": "50%"},
}


def validator(schemas: pathlib.Path, name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((schemas / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


async def main(url: str, schemas: pathlib.Path) -> None:
    validator(schemas, "job").validate(MESSAGE)
    events = validator(schemas, "job-event")
    client = await nats.connect(url)
    end = await client.subscribe("prewarm.event.job.from-python.completed")
    ack = await client.jetstream().publish("prewarm.job.submit", json.dumps(MESSAGE).encode())
    assert ack.stream == "PREWARM_JOBS", ack
    event = json.loads((await end.next_msg(timeout=15)).data)
    events.validate(event)
    assert event["specversion"] == "1.0" and event["type"] == "dev.prewarm.job.completed", event
    data = event["data"]
    counts = data["counts"]
    print(f"{data['job']}: {data['outcome']}, {counts['succeeded']} of {counts['desired']}")
    await client.close()


asyncio.run(main(sys.argv[1], pathlib.Path(sys.argv[2])))
