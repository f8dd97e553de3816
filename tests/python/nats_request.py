"""Stands in for the `nats` command line, as far as deploy/ci uses it: `nats request --raw SUBJECT BODY` and `nats pub SUBJECT BODY`.

Like the real one (github.com/nats-io/natscli) it takes server, user and password from the environment, prints what the reply holds,
and ends with 0 also when nobody answers. Whatever else is asked of it is refused.
"""

import asyncio
import os
import sys

import nats
from nats.errors import Error, NoRespondersError, NoServersError, TimeoutError

# Longer than the real one's (its --timeout, 5 s): a busy machine answers late.
TIMEOUT_SECONDS = 30


async def main(verb: str, subject: str, body: str) -> None:
    client = await nats.connect(
        os.environ["NATS_URL"],
        user=os.environ.get("NATS_USER"),
        password=os.environ.get("NATS_PASSWORD"),
        allow_reconnect=False,
        connect_timeout=TIMEOUT_SECONDS,
        max_reconnect_attempts=1,
        reconnect_time_wait=0,
    )
    try:
        if verb == "pub":
            await client.publish(subject, body.encode())
            await client.flush()
            return
        reply = await client.request(subject, body.encode(), timeout=TIMEOUT_SECONDS)
        # An error of a service is in headers, and its body is empty.
        print(reply.data.decode() or "nil body")
    except NoRespondersError:
        print("No responders are available", file=sys.stderr)
    except TimeoutError:
        pass
    finally:
        await client.close()


if sys.argv[1:-2] not in (["request", "--raw"], ["pub"]):
    sys.exit(f"this stand-in knows no {sys.argv[1:]}")
if "{{" in sys.argv[-1]:
    sys.exit("the real one would take this for a template")
try:
    asyncio.run(main(sys.argv[1], *sys.argv[-2:]))
except (OSError, NoServersError, Error) as error:
    # As the real one says whatever it cannot go on after.
    sys.exit(f"nats: error: {error}")
