"""Stands in for the `nats` command line, as far as deploy/ci/nats uses it: `nats request --raw SUBJECT BODY`.

Like the real one (github.com/nats-io/natscli) it takes server, user and password from the environment, prints what the reply holds,
and ends with 0 also when nobody answers. Whatever else is asked of it is refused.
"""

import asyncio
import os
import sys

import nats
from nats.errors import NoRespondersError, TimeoutError

# The real one's, of one request (its --timeout).
TIMEOUT_SECONDS = 5


async def main(subject: str, body: str) -> None:
    client = await nats.connect(
        os.environ["NATS_URL"],
        user=os.environ.get("NATS_USER"),
        password=os.environ.get("NATS_PASSWORD"),
        allow_reconnect=False,
    )
    try:
        print((await client.request(subject, body.encode(), timeout=TIMEOUT_SECONDS)).data.decode())
    except NoRespondersError:
        print("No responders are available", file=sys.stderr)
    except TimeoutError:
        pass
    await client.close()


if len(sys.argv) != 5 or sys.argv[1:3] != ["request", "--raw"]:
    sys.exit(f"this stand-in knows no {sys.argv[1:]}")
if "{{" in sys.argv[4]:
    sys.exit("the real one would take this for a template")
asyncio.run(main(sys.argv[3], sys.argv[4]))
