"""Builds brainfast._C: finds the tools, then hands over to CMake and Ninja."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
PTX = "factor_readout.ptx"  # beside the module, in a build with nvcc


def package_layout() -> tuple[list[str], dict[str, str]]:
    """Packages and their folders: ./brainfast, and ./export as brainfast.export."""
    packages = find_packages(include=["brainfast", "brainfast.*"])
    folders = {"brainfast": "brainfast"}
    if (ROOT / "export").is_dir():
        inner = find_packages(str(ROOT / "export"))
        packages += ["brainfast.export", *(f"brainfast.export.{name}" for name in inner)]
        folders["brainfast.export"] = "export"
    return packages, folders


def site_folders() -> list[Path]:
    """Site-packages of the environment that is installed into, and of the build's own."""
    found = [sysconfig.get_path("purelib"), *site.getsitepackages(), *sys.path]
    return [Path(folder) for folder in dict.fromkeys(found) if folder]


def nvcc_candidates() -> list[Path]:
    named = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    wheels = [folder / "nvidia" / "cu13" for folder in site_folders()]
    found = [Path(name) for name in named if name]
    return found + [Path(home) / "bin" / "nvcc" for home in [*homes, *wheels] if home]


def cuda_settings() -> tuple[list[str], dict[str, str]]:
    """CMake options and environment of the CUDA part; BRAINFAST_CUDA=0|1|auto."""
    wanted = os.environ.get("BRAINFAST_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise SystemExit(f"BRAINFAST_CUDA: expected 0, 1 or auto, got {wanted!r}")
    nvcc = next((path for path in nvcc_candidates() if path.is_file()), None)
    if wanted == "1" and nvcc is None:
        raise SystemExit("BRAINFAST_CUDA=1: no nvcc found; set CUDACXX or CUDA_HOME")
    if wanted == "0" or nvcc is None:
        return ["-DBRAINFAST_CUDA=0" if wanted == "0" else "-DBRAINFAST_CUDA=auto"], {}
    options = [f"-DBRAINFAST_CUDA={wanted}"]
    # By the environment, so that CMake tries the compiler before it relies on it.
    environment = {"CUDACXX": str(nvcc)}
    if architectures := os.environ.get("BRAINFAST_CUDA_ARCHS"):
        options.append(f"-DBRAINFAST_CUDA_ARCHS={architectures.replace(',', ';')}")
    libraries = nvcc.resolve().parent.parent / "lib"
    if (libraries / "libcudart_static.a").is_file():
        # The toolkit from PyPI: nvcc looks in lib64, its libraries are in lib.
        path = [str(libraries), os.environ.get("LIBRARY_PATH")]
        environment["LIBRARY_PATH"] = os.pathsep.join(filter(None, path))
    return options, environment


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"{name}: expected on PATH, got nothing; pip install {name}")
    return path


def made_by_another_cmake(folder: Path, cmake: str) -> bool:
    """Whether a cache in `folder` holds paths of an environment that is gone by now."""
    cache = folder / "CMakeCache.txt"
    return cache.is_file() and f"BRAINFAST_CMAKE:UNINITIALIZED={cmake}\n" not in cache.read_text()


class FreshCopy(build_py):
    """Copies the package where no older copy lies: its modules of other names would be shipped."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "brainfast", ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Runs CMake where setuptools would run a compiler."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        cmake = tool("cmake")
        options, environment = cuda_settings()
        fresh = ["--fresh"] if made_by_another_cmake(folder, cmake) else []
        configure = [
            *[cmake, *fresh, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"],
            f"-DBRAINFAST_CMAKE={cmake}",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DBRAINFAST_OUTPUT={output}",
            *options,
        ]
        environment = {**os.environ, **environment}
        subprocess.run(configure, check=True, env=environment)
        subprocess.run([cmake, "--build", str(folder)], check=True, env=environment)

    def copy_extensions_to_source(self) -> None:
        """What a build in place adds: the module, and what lies beside it."""
        super().copy_extensions_to_source()
        own = ROOT / "brainfast" / PTX
        own.unlink(missing_ok=True)
        if self._built_ptx().is_file():
            shutil.copy(self._built_ptx(), own)

    def get_outputs(self) -> list[str]:
        """What was built: the module, and what lies beside it."""
        ptx = self._built_ptx()
        return sorted({*super().get_outputs(), *([str(ptx)] if ptx.is_file() else [])})

    def get_output_mapping(self) -> dict[str, str]:
        """Built files and their copies in the source, where the build is in place."""
        mapping = super().get_output_mapping()
        if mapping and self._built_ptx().is_file():
            mapping[str(self._built_ptx())] = str(ROOT / "brainfast" / PTX)
        return mapping

    def _built_ptx(self) -> Path:
        return Path(self.build_lib) / "brainfast" / PTX


packages, package_dir = package_layout()
setup(
    packages=packages,
    package_dir=package_dir,
    ext_modules=[Extension("brainfast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshCopy},
)
