#!/usr/bin/env python3
"""An executable stand-in for `nvidia-cuda-mps-control`: the states that need a GPU to reach with the real one.

`-f` is the daemon, anything else reads commands from standard input. What it does beyond that is written by the test,
at any time, into the JSON file that STAND_IN_BEHAVIOUR names:

    state         INITIALIZING, ACTIVE or FAULT                     default ACTIVE
    clients       pids that get_client_list names                   default none
    lose          answers to lose: nothing printed, status 0        counted down
    stubborn      quit does nothing                                 default false
    server_log    lines for server.log, written at the next command default none
"""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

PIPE = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])


def behaviour(**changes):
    """The behaviour file's content, after taking one from each counter that is named."""
    path = Path(os.environ["STAND_IN_BEHAVIOUR"])
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        now = json.load(file)
        if changes:
            file.seek(0)
            file.truncate()
            json.dump({**now, **{name: max(0, now.get(name, 0) - 1) for name in changes}}, file)
        return now


class Daemon:
    def __init__(self):
        self.server = None
        self.percentage = 100.0

    def serve(self):
        (PIPE / "control").unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(PIPE / "control"))
        listener.listen(64)
        print("Starting control daemon", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as talk:
                for line in talk:
                    answer = self.answer(line.strip())
                    if answer is None:
                        return
                    print(json.dumps(answer), file=talk, flush=True)

    def answer(self, command):
        now = behaviour()
        for line in now.get("server_log", ()):
            with (Path(os.environ["CUDA_MPS_LOG_DIRECTORY"]) / "server.log").open("a") as log:
                print(line, file=log)
        if self.server and self.server.poll() is not None:
            print(f"Server {self.server.pid} exited with status {self.server.returncode}", flush=True)
            self.server = None
        pid = self.server.pid if self.server else None
        verb, *words = command.split()
        if verb in ("get_server_status", "get_client_list", "terminate_client") and int(words[0]) != pid:
            return f"Server {words[0]} not found"
        if verb == "get_server_list":
            return str(pid) if pid else ""
        if verb == "get_server_status":
            return now.get("state", "ACTIVE")
        if verb == "get_client_list":
            return "\n".join(map(str, now.get("clients", ())))
        if verb == "get_default_active_thread_percentage":
            return str(self.percentage)
        if verb == "set_default_active_thread_percentage":
            self.percentage = float(words[0]) if 0 < float(words[0]) <= 100 else self.percentage
            return str(self.percentage)
        if verb == "start_server":
            self.server = self.server or subprocess.Popen(["nvidia-cuda-mps-server", "600"], executable="/bin/sleep")
            return ""
        if verb == "terminate_client":
            return "0" if int(words[1]) in now.get("clients", ()) else "1"
        if verb == "quit" and not now.get("stubborn"):
            if self.server:
                self.server.kill()
                self.server.wait()
            (PIPE / "control").unlink()
            return None
        return "" if verb == "quit" else f'Unknown command "{verb}"'


def command():
    lines = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if behaviour(lose=-1).get("lose", 0) > 0:
        return 0
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(PIPE / "control"))
        except OSError:
            print("Cannot find MPS control daemon process", file=sys.stderr)
            return 1
        with connection.makefile("rw") as talk:
            for line in lines:
                print(line, file=talk, flush=True)
                answer = talk.readline()
                if answer and json.loads(answer):
                    print(json.loads(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(Daemon().serve() if sys.argv[1:] == ["-f"] else command())
