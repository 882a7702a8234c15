"""Submit a job to an NVFlare server and wait until it has ended: run as a program of its own."""

from __future__ import annotations

import sys
import time

from nvflare.fuel.flare_api.flare_api import new_secure_session


def main(user: str, kit: str, job: str, seconds: float) -> int:
    """Print how it has ended; 0 if it completed."""
    session = new_secure_session(user, kit, timeout=60.0)
    try:
        number, status = session.submit_job(job), ""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not status.startswith("FINISHED"):
            time.sleep(1)
            status = str(session.get_job_meta(number).get("status"))
        print(status)
        return 0 if status == "FINISHED:COMPLETED" else 1
    finally:
        session.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])))
