"""Print the reference of an image that has this environment's Parsl: an OCI layout under .cache, made if missing."""

from importlib.metadata import version

from tests.support import images


def main() -> str:
    packages = [f"{name}=={version(name)}" for name in ("parsl", "pytest", "numpy", "pandas")]
    path = images.cache_dir() / f"parsl-{version('parsl')}"
    if not (path / "index.json").exists():
        images.derive(images.image("numeric"), path, [images.python_layer(*packages, name="numeric")])
    return f"oci:{path}:latest"


if __name__ == "__main__":
    print(main())
