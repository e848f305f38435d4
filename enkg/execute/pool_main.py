"""The program of a pool's processes. Its arguments: a socket, and where modules are looked for.

It runs as a script, before anything of enkg is imported. Functions of the user's seldom need enkg
itself, whose import takes seconds and 200 MB; so it is put off until something of it is asked for.
"""

import importlib
import importlib.util
import sys
import types


class Package(types.ModuleType):
    """A package that is imported when one of its names is asked for, other than a module."""

    def __getattr__(self, name: str) -> object:
        loader = self.__spec__.loader if self.__spec__ else None
        if loader is None or (name.startswith("__") and name not in ("__all__", "__version__")):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module = f"{self.__name__}.{name}"
        if importlib.util.find_spec(module) is not None:
            return importlib.import_module(module)
        self.__class__ = types.ModuleType  # type: ignore[assignment]
        loader.exec_module(self)
        return getattr(self, name)


def light() -> None:
    """Makes the import of enkg's modules cheap."""
    for name in ("enkg", "enkg.execute"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        sys.modules[name] = package = importlib.util.module_from_spec(spec)
        package.__class__ = Package
    sys.modules["enkg"].execute = sys.modules["enkg.execute"]  # type: ignore[attr-defined]


def main() -> None:
    sys.path[:] = sys.argv[2:]
    light()
    from enkg.execute.pool_process import serve

    serve(int(sys.argv[1]))


if __name__ == "__main__":
    main()
