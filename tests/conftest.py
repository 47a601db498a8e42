"""Every test runs in float64 on two host devices, with array shapes checked at run time against their annotations."""

import os
import tempfile

DEVICES = "--xla_force_host_platform_device_count=2"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
# Programs that several modules or processes need are compiled once per session. Workers inherit the environment.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="bnnwide-tests-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
import scipy.linalg  # noqa: E402, F401  # loads the BLAS that JAX's LAPACK calls use
from jaxtyping import install_import_hook  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

jax.config.update("jax_enable_x64", True)
# BLAS threads of several test processes spin while they wait for cores, and slow small Cholesky factors a hundredfold.
threadpool_limits(1, user_api="blas")
# Kept for the whole session: modules of the package are imported lazily, when a public name is first used.
install_import_hook("bnnwide", "beartype.beartype")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_of_one_module(request):
    """Compile quickly unless the module runs for long, and drop its programs at its end.

    Most tests compile for far longer than they compute. Without LLVM's optimisations numbers differ by rounding
    only. Programs hold memory maps, of which Linux allows a process 65,530.
    """
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("optimised") is None)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture
def only_the_librarys_own_checks():
    """Turn off the tests' run-time shape checks, which a user does not have and which would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
