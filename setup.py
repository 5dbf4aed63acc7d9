"""Builds the one extension, `meshnode.engine._native`: the packet engine and the relay in C11 over OpenSSL.

One abi3 binary serves every CPython from 3.11 on. Before anything is compiled, the compiler,
Python's headers and OpenSSL's are looked for, and what is missing is named in one line.
Objects are rebuilt only when their source, any header or the flags changed.

Settings, all by environment:
  CC                  the compiler
  MESHNODE_SANITIZE   e.g. `address,undefined` or `thread`: a build for hunting bugs, in place:
        MESHNODE_SANITIZE=address,undefined python setup.py build_ext --inplace
        LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \\
            ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc meshnode demo
    Build again without the variable to go back.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
ABI = "0x030B0000"
OPENSSL_PROBE = """
#include <openssl/evp.h>
#include <openssl/opensslv.h>
#if OPENSSL_VERSION_NUMBER < 0x30000000L
#error too old
#endif
int main(void) { EVP_MD_CTX *c = EVP_MD_CTX_new(); EVP_MD_CTX_free(c); return 0; }
"""


def sources() -> list[str]:
    """Every C file of the engine, tests and fuzz targets left out."""
    found = [*(ROOT / "native").glob("module*.c"), *(ROOT / "native").glob("*/*.c")]
    return sorted(str(p.relative_to(ROOT)) for p in found if p.parent.name not in ("tests", "fuzz"))


def sanitizers() -> str:
    """What MESHNODE_SANITIZE asks for; empty for an ordinary build."""
    return os.environ.get("MESHNODE_SANITIZE", "").strip()


def compile_flags() -> list[str]:
    """Flags of every object, an ordinary build's or a sanitizer's."""
    flags = ["-std=c11", "-D_GNU_SOURCE", f"-DPy_LIMITED_API={ABI}", "-fvisibility=hidden", "-pthread",
             "-fno-strict-overflow", "-fno-semantic-interposition", "-Wall", "-Wextra",
             "-Werror=implicit-function-declaration", "-Inative"]  # fmt: skip
    if sanitizers():
        flags += ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"]
        return [*flags, f"-fsanitize={sanitizers()}"]
    return [*flags, "-O3", "-g0", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]


def link_flags() -> list[str]:
    """Flags of the link: no lazy binding, nothing exported but the module's entry."""
    flags = ["-pthread", "-Wl,-z,relro,-z,now", "-Wl,--exclude-libs,ALL"]
    return [*flags, f"-fsanitize={sanitizers()}"] if sanitizers() else flags


def require_tools(compiler: list[str], includes: list[str]) -> None:
    """Stop with one line that says what to install, if something is missing."""
    if not compiler or shutil.which(compiler[0]) is None:
        raise SystemExit("meshnode: there is no C compiler; on Debian: apt-get install gcc libc6-dev")
    if not any((Path(d) / "Python.h").is_file() for d in includes):
        raise SystemExit("meshnode: Python's headers are missing; on Debian: apt-get install python3-dev")
    with tempfile.TemporaryDirectory() as scratch:
        probe = Path(scratch) / "probe.c"
        probe.write_text("#include <stdlib.h>\nint main(void) { return 0; }\n")
        if not builds(compiler, probe, []):
            raise SystemExit("meshnode: the C compiler builds nothing; on Debian: apt-get install gcc libc6-dev")
        probe.write_text(OPENSSL_PROBE)
        if not builds(compiler, probe, ["-lcrypto"]):
            raise SystemExit(
                "meshnode: OpenSSL's headers (3.0 or newer) are missing; on Debian: apt-get install libssl-dev"
            )


def builds(compiler: list[str], probe: Path, libraries: list[str]) -> bool:
    """Whether this small program compiles and links."""
    command = [*compiler, *shlex.split(os.environ.get("CFLAGS", "")), str(probe), "-o", str(probe.with_suffix(""))]
    command += [*shlex.split(os.environ.get("LDFLAGS", "")), *libraries]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class BuildNative(build_ext):
    """build_ext that checks first, compiles two files at a time and only what changed."""

    def build_extension(self, ext: Extension) -> None:
        """Compile what is out of date and link."""
        compiler = list(self.compiler.compiler_so)
        includes = [*self.compiler.include_dirs, *sysconfig.get_paths().values()]
        require_tools(compiler[:1], includes)
        newest = max(p.stat().st_mtime for p in [*ROOT.glob("native/*/*.h"), ROOT / "setup.py"])
        stamp = hashlib.sha256(" ".join([*compiler, *ext.extra_compile_args]).encode()).hexdigest()[:12]
        folder = Path(self.build_temp) / stamp
        with ThreadPoolExecutor(max_workers=2) as pool:
            objects = list(pool.map(lambda s: self.build_object(s, ext, folder, newest), ext.sources))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(target), libraries=self.get_libraries(ext), library_dirs=ext.library_dirs,
            extra_postargs=ext.extra_link_args, build_temp=str(folder), target_lang="c",
        )  # fmt: skip

    def build_object(self, source: str, ext: Extension, folder: Path, newest_header: float) -> str:
        """Compile one source unless its object is newer than everything it may depend on."""
        target = folder / Path(source).with_suffix(".o")
        needed = max((ROOT / source).stat().st_mtime, newest_header)
        if self.force or not target.exists() or target.stat().st_mtime <= needed:
            self.compiler.compile(
                [source], output_dir=str(folder), include_dirs=ext.include_dirs, extra_postargs=ext.extra_compile_args
            )
        return str(target)


setup(
    ext_modules=[
        Extension(
            "meshnode.engine._native",
            sources=sources(),
            libraries=["ssl", "crypto"],
            extra_compile_args=compile_flags(),
            extra_link_args=link_flags(),
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
