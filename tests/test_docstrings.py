"""Every public name says what it is: the package's, those its rooms export, and their public methods."""

import importlib
import inspect
import pkgutil

import hf_clip_domain
from hf_clip_domain.errors import ClipDomainError


def rooms():
    """The package and every package in it that exports names."""
    names = [info.name for info in pkgutil.walk_packages(hf_clip_domain.__path__, "hf_clip_domain.") if info.ispkg]
    modules = [hf_clip_domain, *map(importlib.import_module, names)]
    return [module for module in modules if getattr(module, "__all__", None)]


def public_names():
    for room in rooms():
        for name in room.__all__:
            if not name.startswith("__") and callable(getattr(room, name)):
                yield f"{room.__name__}.{name}", getattr(room, name)


def own_methods(kind):
    """Public methods that are defined in this package; those that replace a library's keep its words."""
    for name, member in inspect.getmembers(kind):
        member = member.fget if isinstance(member, property) else inspect.unwrap(member)
        inner = getattr(member, "__func__", member)
        ours = inspect.isfunction(inner) and inner.__module__.startswith("hf_clip_domain")
        if ours and not name.startswith("_") and inner.__qualname__.startswith(kind.__name__):
            yield name, inner


def lacking(name, value):
    """What has no words of its own: the name, or methods of the class."""
    words = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    # A dataclass without a docstring gets its signature.
    if not words or words.startswith(f"{value.__name__}("):
        yield name
    if inspect.isclass(value):
        for method, function in own_methods(value):
            if not inspect.getdoc(function) and not any(
                inspect.getdoc(getattr(base, method, None)) for base in value.__mro__[1:] if hasattr(base, method)
            ):
                yield f"{name}.{method}"


def source(function):
    """The lines of a function; none of one that a decorator has made."""
    try:
        return inspect.getsource(function)
    except OSError:
        return ""


def silent_errors(name, value):
    """What raises the user's errors and does not say so; of a method its class may."""
    told = (inspect.getdoc(value) or "").lower()
    if inspect.isfunction(value):
        functions = [(name, value)]
    else:
        makers = [value.__dict__[maker] for maker in ("__init__", "__post_init__") if maker in value.__dict__]
        makers = [
            maker for maker in makers if inspect.isfunction(maker) and not maker.__code__.co_filename.startswith("<")
        ]
        methods = [(f"{name}.{method}", function) for method, function in own_methods(value)]
        functions = [*((name, maker) for maker in makers), *methods]
    for where, function in functions:
        words = told + (inspect.getdoc(function) or "").lower()
        if "raise ClipDomainError" in source(function) and "raise" not in words:
            yield where


def test_every_public_name_has_a_docstring():
    names = dict(public_names())
    assert len(names) > 40
    assert not [missing for name, value in names.items() for missing in lacking(name, value)]


def test_errors_are_told():
    assert not [where for name, value in public_names() for where in silent_errors(name, value)]


def test_every_room_has_a_docstring():
    assert not [room.__name__ for room in rooms() if not room.__doc__]


def test_the_check_can_fail():
    class Silent:
        def method(self): ...

    Silent.method.__module__, Silent.method.__qualname__ = "hf_clip_domain.x", "Silent.method"
    assert list(lacking("x.Silent", Silent)) == ["x.Silent", "x.Silent.method"]

    def fails():
        raise ClipDomainError("no")

    assert list(silent_errors("x.fails", fails)) == ["x.fails"]
