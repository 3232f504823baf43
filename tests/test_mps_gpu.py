"""The MPS controller with a real server and real CUDA clients: what no stand-in can show."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest

from orchestrator.errors import MpsFault
from orchestrator.mps import daemon
from orchestrator.mps_attachment import outside_environment
from orchestrator.process import wait_gone

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no GPU: nvidia-smi is not on PATH"),
]

LIMIT_S = 60.0

# Makes a context, prints its SM count; each further line is an order.
CLIENT = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def check(status):
    if status:
        sys.exit(f"CUDA status {status}")
device, context, sms = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int()
module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
check(cuda.cuInit(0))
check(cuda.cuDeviceGet(ctypes.byref(device), 0))
check(cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device))
check(cuda.cuDeviceGetAttribute(ctypes.byref(sms), 16, device))
print(sms.value, flush=True)
ptx = b'''.version 7.0
.target sm_70
.address_size 64
.visible .entry stray() {
    .reg .b64 %address;
    .reg .b32 %value;
    mov.u64 %address, 16;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
'''
for order in sys.stdin:
    check(cuda.cuModuleLoadData(ctypes.byref(module), ptx))
    check(cuda.cuModuleGetFunction(ctypes.byref(kernel), module, b"stray"))
    check(cuda.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, None, None, None))
    print(cuda.cuCtxSynchronize(), flush=True)
"""


@pytest.fixture(scope="module")
def gpu_uuid():
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    return subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[0]


@contextmanager
def clients(*environments):
    """CUDA clients with a context each, and the SM counts that they see."""
    with ExitStack() as stack:
        started = []
        for environment in environments:
            child = subprocess.Popen(
                [sys.executable, "-S", "-c", CLIENT],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(child.communicate)  # the end of its orders is an orderly end
            started.append((child, int(child.stdout.readline())))
        yield started


def test_attachment_of_real_clients(gpu_uuid):
    with daemon(gpu_uuid) as mps:
        server = mps.start_server()
        assert mps.control.servers() == (server,)
        environments = [
            mps.client_environment("whole"),
            mps.client_environment("half", active_thread_percentage=50),
            outside_environment(gpu_uuid, "outside"),
        ]
        with clients(*environments) as [(whole, all_sms), (half, half_sms), (outside, outside_sms)]:
            proof = mps.attachment({"whole": whole.pid, "half": half.pid}, {"outside": outside.pid})
            assert set(proof.attached) == set(proof.expected) == {whole.pid, half.pid}
            assert proof.detached == (outside.pid,)
            assert outside_sms == all_sms
            assert 0 < half_sms <= all_sms / 2
            mps.health()
        deadline = time.monotonic() + LIMIT_S
        while mps.clients() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert mps.clients() == ()
        mps.health()
        identity = mps.server
    assert not wait_gone([identity, mps.process.identity], 0)
    assert not mps.home.folder.exists()


def test_a_stray_write_is_a_fault_of_all(gpu_uuid):
    with daemon(gpu_uuid) as mps:
        mps.start_server()
        with clients(mps.client_environment("stray")) as [(stray, _)]:
            stray.stdin.write("go\n")
            stray.stdin.flush()
            assert int(stray.stdout.readline()) != 0
            deadline = time.monotonic() + LIMIT_S
            with pytest.raises(MpsFault) as caught:
                while time.monotonic() < deadline:
                    mps.health()
                    time.sleep(0.2)
            print(caught.value, caught.value.log_tail, sep="\n")
    assert not mps.home.folder.exists()
