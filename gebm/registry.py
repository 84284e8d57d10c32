"""Registry of the parts that a name chooses: networks, samplers, objectives and penalties, and those of the pipeline.

A part is a class or a function. What it needs is written where it is registered: the arguments that every part of its
kind gets are known to the registry, and each further parameter is a setting, with its type, its default and, in
``Annotated``, its limits. Whatever lists or checks names and settings reads them here, so that a part of one's own is
as good as the built-in ones::

    @gebm.samplers.register("mine", like="mala")
    @dataclass(frozen=True)
    class Mine:
        step_size: float
        gamma: Annotated[float, Limits(gt=0)] = 1.0
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

__all__ = ["REQUIRED", "Limits", "Part", "Registry", "Setting", "all_or_nothing", "load_source", "source_of"]

_T = TypeVar("_T", bound=Callable[..., Any])
_Registered = TypeVar("_Registered", bound=Callable[..., Any])
_TYPES = (bool, int, float, str, tuple[float, ...])
_SOURCE = "__source__"
# The packages whose parts are built in.
_PROJECT = ("gebm", "pipeline")
_NAME = re.compile(r"[A-Za-z_]\w*")

REQUIRED: Any = inspect.Parameter.empty
"""Default of a setting that has none."""


@dataclass(frozen=True)
class Limits:
    """Values that a setting may have, in the ``Annotated`` of its type.

    Args:
        gt: Lower limit of a number, which is excluded.
        ge: Lower limit of a number, which is included.
        lt: Upper limit of a number, which is excluded.
        choices: Texts to choose from.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """A setting of a part.

    Args:
        name: Its name.
        type: ``bool``, ``int``, ``float``, ``str`` or ``tuple[float, ...]``.
        optional: Whether ``None`` is a value as well.
        default: Its default; :data:`REQUIRED` where it has none.
        limits: Values that it may have.
        help: Its line in the part's docstring.
    """

    name: str
    type: Any
    optional: bool = False
    default: Any = REQUIRED
    limits: Limits = Limits()
    help: str = ""


@dataclass(frozen=True, eq=False)
class Part:
    """A part as it was registered.

    Args:
        name: The name that chooses it.
        make: Builds it.
        parameters: All parameters of ``make``, with their defaults or :data:`REQUIRED`.
        settings: Those that are settings, by name.
        facts: Facts that each part of the kind has, such as the tasks that networks are for.
        module: Name of the module that registered it.
        help: First line of its docstring.
    """

    name: str
    make: Callable[..., Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""
    help: str = ""

    @property
    def builtin(self) -> bool:
        """Whether it is one of this project's own."""
        return self.module.partition(".")[0] in _PROJECT

    def refuse_unknown(self, settings: Mapping[str, Any]) -> None:
        """Refuse settings that it does not have.

        Raises:
            ValueError: There are some.
        """
        if unknown := sorted(settings.keys() - self.settings.keys()):
            own = ", ".join(self.settings) or "none"
            raise ValueError(f"{self.name} has no setting {', '.join(unknown)}: those it has are {own}")

    def build(self, settings: Mapping[str, Any] | None = None, /, **given: Any) -> Any:
        """Build it.

        Args:
            settings: Its settings.
            **given: Arguments that the caller gives, of which it takes those that it has.

        Raises:
            ValueError: It has no such setting.

        Example:
            >>> Part("star", lambda size: "*" * size, {"size": REQUIRED}).build(size=3, color="red")
            '***'
        """
        settings = settings or {}
        self.refuse_unknown(settings)
        return self.make(**{name: value for name, value in given.items() if name in self.parameters}, **settings)


# Modules stay imported, and so do the registries that they make.
_registries: list[Registry[Any]] = []


class Registry(Mapping[str, _T], Generic[_T]):
    """Names of the parts of one kind, each with what builds it; :meth:`part` has the rest.

    Args:
        kind: Name of the kind of part, for messages, such as ``"sampler"``.
        given: Arguments that the caller gives a part, where it has them; all others are settings.
        facts: Facts of a part, with their defaults, whose types they have.
        choices: Values of those facts that have a few.
        inherits: The fact that names another part, whose facts hold where a part is registered without; by default
            there is none.
        taken: Names that no part may have.
        has_settings: Whether a part may have settings.
        inner: Fact that names the setting by which a part chooses another of its kind, that it is built of.

    Example:
        >>> shapes = Registry("shape", given=("size",), facts={"corners": 0})
        >>> @shapes.register("star", corners=5)
        ... def star(size: int, depth: Annotated[float, Limits(gt=0)] = 0.5) -> str:
        ...     return f"star of {size}"
        >>> list(shapes), shapes["star"](3), shapes.part("star").facts["corners"]
        (['star'], 'star of 3', 5)
        >>> shapes.part("star").settings["depth"].limits.gt, shapes.part("star").settings["depth"].default
        (0, 0.5)
        >>> shapes.register("star")(star)
        Traceback (most recent call last):
        ...
        ValueError: there is a shape called 'star' already: choose another name
    """

    def __init__(
        self,
        kind: str,
        *,
        given: tuple[str, ...] = (),
        facts: Mapping[str, Any] | None = None,
        choices: Mapping[str, Collection[Any]] | None = None,
        inherits: str | None = None,
        taken: Container[str] = (),
        has_settings: bool = True,
        inner: str | None = None,
    ) -> None:
        self._kind, self._given, self._facts = kind, given, dict(facts or {})
        self._inner = inner
        self._choices, self._taken, self._has_settings = dict(choices or {}), taken, has_settings
        self._inherits = inherits
        self._parts: dict[str, Part] = {}
        _registries.append(self)

    def __getitem__(self, name: str) -> _T:
        return typing.cast(_T, self._parts[name].make)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def part(self, name: str) -> Part:
        """Return a part by its name.

        Args:
            name: Its name.

        Raises:
            KeyError: There is none of that name.
        """
        return self._parts[name]

    def build(self, name: str, settings: Mapping[str, Any] | None = None, /, **given: Any) -> Any:
        """Build a part by its name; see :meth:`Part.build`.

        Raises:
            ValueError: There is no part of that name, or it has no such setting.
        """
        if name not in self._parts:
            raise ValueError(f"no {self._kind} is called '{name}': choose one of {', '.join(self)}")
        return self._parts[name].build(settings, **given)

    def parts(self) -> tuple[Part, ...]:
        """Return all parts."""
        return tuple(self._parts.values())

    def having(self, fact: str, value: Any) -> tuple[str, ...]:
        """Return the names of the parts of which a fact is this value, or contains it."""

        def holds(own: Any) -> bool:
            return value in own if isinstance(own, tuple) else own == value

        return tuple(name for name, part in self._parts.items() if holds(part.facts[fact]))

    def inner(self, name: str) -> tuple[str, ...]:
        """Return the names of the parts that a part may be built of, as it was registered; the first is the default.

        Args:
            name: Name of the part.
        """
        part = self._parts[name]
        setting = part.facts[self._inner] if self._inner is not None else ""
        return part.settings[setting].limits.choices if setting else ()

    def register(
        self, name: str, *, settings: Mapping[str, Any] | None = None, **facts: Any
    ) -> Callable[[_Registered], _Registered]:
        """Register a class or a function under a name, as a decorator.

        Args:
            name: The name that will choose it.
            settings: Types of settings that the part's own annotations do not say.
            **facts: Facts of the part; see the registry.

        Raises:
            ValueError: The name is taken or no name, a fact is unknown or has no such value, or the type of a setting
                is not one that can be written on a command line.
        """
        # The module that registers, which need not be the one that defines.
        module = _caller()

        def add(make: _Registered) -> _Registered:
            if not callable(make):
                raise ValueError(f"{self._kind} {name!r}: a class or a function is registered, not {make!r:.50}")
            self._parts[name] = self._describe(name, make, settings or {}, facts, module)
            return make

        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of {_with_article(self._kind)}: use letters, digits and _")
        if name in self._parts or name in self._taken:
            raise ValueError(f"there is {_with_article(self._kind)} called {name!r} already: choose another name")
        if unknown := sorted(facts.keys() - self._facts.keys()):
            known = ", ".join(self._facts) or "nothing"
            raise ValueError(
                f"{_with_article(self._kind)} is not registered with {', '.join(unknown)}: it takes {known}"
            )
        for fact, value in facts.items():
            self._check_fact(name, fact, value)
        if (like := facts.get(self._inherits or "")) is not None:
            if like not in tuple(self._parts):
                raise ValueError(
                    f"{self._kind} {name!r}: {self._inherits}={like!r:.50} has to be among {', '.join(self)}"
                )
            facts = {**self._parts[like].facts, **facts}
        return add

    def _check_fact(self, name: str, fact: str, value: Any) -> None:
        default, choices = self._facts[fact], self._choices.get(fact, ())
        kind = type(default)
        if default is not None and (not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool)):
            noun = _with_article(kind.__name__)
            raise ValueError(f"{self._kind} {name!r}: {fact}={value!r:.50} has to be {noun}, as in {default!r}")
        if choices and any(one not in choices for one in (value if isinstance(value, tuple) else (value,))):
            is_range = isinstance(choices, range)
            among = f"from {choices[0]} to {choices[-1]:,}" if is_range else f"among {', '.join(map(str, choices))}"
            raise ValueError(f"{self._kind} {name!r}: {fact}={value!r:.50} has to be {among}")

    def _describe(
        self, name: str, make: Callable[..., Any], types: Mapping[str, Any], facts: dict[str, Any], module: str
    ) -> Part:
        function = make.func if isinstance(make, functools.partial) else make
        # A dataclass has the annotations of its fields, and any other class those of its constructor.
        is_plain = isinstance(function, type) and not dataclasses.is_dataclass(function)
        annotated = typing.cast(Any, function).__init__ if is_plain else function
        hints = {**typing.get_type_hints(annotated, include_extras=True), **types}
        doc = inspect.getdoc(function) or ""
        parameters: dict[str, Any] = {}
        settings = {}
        for parameter in inspect.signature(make).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise ValueError(f"{self._kind} {name!r}: give its parameter {parameter} a name, so that it can be set")
            parameters[parameter.name] = parameter.default
            if parameter.name not in self._given and not self._has_settings:
                raise ValueError(
                    f"{self._kind} {name!r}: leave out its parameter {parameter.name}; it is given "
                    f"{', '.join(self._given)}, as far as it has them"
                )
            if parameter.name not in self._given:
                hint = hints.get(parameter.name)
                setting = _setting(parameter.name, hint, parameter.default, _help_of(parameter.name, doc))
                if setting is None:
                    raise ValueError(
                        f"{self._kind} {name!r}: its parameter {parameter.name} needs a type that can be typed: bool, "
                        f"int, float, str or tuple[float, ...], perhaps with None; {self._kind} parts are given "
                        f"{', '.join(self._given) or 'nothing'} without one"
                    )
                if problem := _problem_of(setting):
                    raise ValueError(f"{self._kind} {name!r}: its parameter {parameter.name} has {problem}")
                settings[parameter.name] = setting
        if self._inner is not None and (inner := facts.get(self._inner)):
            chosen = settings[inner].limits.choices if inner in settings else ()
            if not chosen or any(other not in self._parts for other in chosen):
                raise ValueError(
                    f"{self._kind} {name!r}: {self._inner}={inner!r} has to be a setting of it, whose choices are "
                    f"names of {self._kind}s"
                )
        help = doc.partition("\n")[0]
        return Part(name, make, parameters, settings, {**self._facts, **facts}, module, help)


@contextlib.contextmanager
def all_or_nothing() -> Iterator[None]:
    """Have a block that raises leave no part registered, so that it can be run again once it is mended."""
    before = [(registry, dict(registry._parts)) for registry in _registries]
    try:
        yield
    except BaseException:
        for registry, parts in before:
            registry._parts.clear()
            registry._parts.update(parts)
        raise


def load_source(source: str, path: str, name: str) -> types.ModuleType:
    """Execute a file's text as a module, once in a process.

    Args:
        source: Text of the file.
        path: Its path, for tracebacks.
        name: Name of the module; one that is loaded already is returned as it is.

    Raises:
        SyntaxError: It is not Python.
        Exception: What the file raises.
    """
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__, module.__dict__[_SOURCE] = path, source
    # Dataclasses and type hints look their module up.
    sys.modules[name] = module
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def source_of(module: str) -> str | None:
    """Return the text of a module that :func:`load_source` has executed; ``None`` of any other."""
    return getattr(sys.modules.get(module), _SOURCE, None)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _caller() -> str:
    """Return the name of the module that calls the function that calls this one."""
    return sys._getframe(2).f_globals.get("__name__", "")


def _setting(name: str, hint: Any, default: Any, help: str) -> Setting | None:
    """Return a setting from a parameter's annotation; ``None`` where it cannot be typed on a command line."""
    limits = Limits()
    if typing.get_origin(hint) is Annotated:
        limits = next((entry for entry in typing.get_args(hint)[1:] if isinstance(entry, Limits)), limits)
        hint = typing.get_args(hint)[0]
    members = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kinds = [member for member in members if member is not type(None)]
    optional = len(kinds) < len(members)
    if len(kinds) != 1 or kinds[0] not in _TYPES:
        return None
    return Setting(name, kinds[0], optional, None if optional and default is REQUIRED else default, limits, help)


def _problem_of(setting: Setting) -> str | None:
    """Return what is wrong with the limits or the default of a setting, as the end of the sentence "it has ..."."""
    limits, default = setting.limits, setting.default
    numbers = [limit for limit in (limits.gt, limits.ge, limits.lt) if limit is not None]
    is_text = setting.type is str
    if not all(isinstance(number, int | float) for number in numbers) or (numbers and setting.type in (str, bool)):
        return f"{limits}: gt, ge and lt are numbers, and of numbers"
    texts = limits.choices
    if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts) or (texts and not is_text):
        return f"{limits}: choices are a tuple of texts, and of a text"
    if default is REQUIRED or (default is None and setting.optional):
        return None
    if not _has_type(default, setting.type):
        kind = "tuple of float" if setting.type == _TYPES[-1] else setting.type.__name__
        return f"the default {default!r:.50}, which is no {kind}"
    for value in default if isinstance(default, tuple) else (default,):
        if not _is_within(value, limits):
            return f"the default {value!r:.50}, which is outside of {limits}"
    return None


def _has_type(value: Any, kind: Any) -> bool:
    if kind == _TYPES[-1]:
        return isinstance(value, tuple) and all(_has_type(number, float) for number in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _is_within(value: Any, limits: Limits) -> bool:
    above = (limits.gt is None or value > limits.gt) and (limits.ge is None or value >= limits.ge)
    return above and (limits.lt is None or value < limits.lt) and (not limits.choices or value in limits.choices)


def _help_of(name: str, doc: str) -> str:
    """Return the description of an argument in a docstring of Google's style, on one line."""
    found = re.search(rf"^ +{name}: (.+?)(?=\n +\w+: |\n\n|\n\S|\Z)", doc, re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""
