"""Options that mean the same in every command, and what is made of them.

Order of precedence: option, ``DTRAIN_*`` environment (and the names that PHT containers use), ``dtrain.toml``, default.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from dtrain.cli import output
from dtrain.errors import MalformedInput, UsageProblem

if TYPE_CHECKING:
    from dtrain.crypto.rsa import PrivateKey
    from dtrain.crypto.secret import Secret
    from dtrain.crypto.signing import SigningKey
    from dtrain.flow.context import Context
    from dtrain.oci.reference import Reference
    from dtrain.trust.anchor import Anchor, EmbeddedKeys

_TRUST, _REGISTRY, _OUTPUT, _KEYS = "Trust", "Registry", "Output", "Keys"


class Progress(StrEnum):
    """When to show a progress bar."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def _option(name: str, help: str, panel: str, env: str | list[str] | None = None, metavar: str | None = None) -> Any:
    return typer.Option(name, help=help, envvar=env, metavar=metavar, rich_help_panel=panel, show_envvar=True)


Ref = Annotated[str, typer.Argument(metavar="REF", help="HOST/REPOSITORY[:TAG][@DIGEST], or oci:DIR[:TAG].")]
StationId = Annotated[str | None, _option("--station", "Your id on the route.", _KEYS,
                                          ["DTRAIN_STATION", "STATION_ID"])]
KeyFile = Annotated[Path | None, _option("--key", "Your private key, a PEM file.", _KEYS,
                                         ["DTRAIN_KEY", "PRIVATE_KEY_PATH"], "FILE")]
PasswordFile = Annotated[Path | None, _option(
    "--key-password-file", "File whose first line opens the key; else DTRAIN_KEY_PASSWORD or PRIVATE_KEY_PASSWORD.",
    _KEYS, "DTRAIN_KEY_PASSWORD_FILE", "FILE")]
SigningKeyFile = Annotated[Path | None, _option(
    "--signing-key", "Your private key that signs metadata; default: the second key in --key, else --key itself.",
    _KEYS, "DTRAIN_SIGNING_KEY", "FILE")]
AnchorFile = Annotated[Path | None, _option("--anchor", "What you trust: keys and base images.", _TRUST,
                                            "DTRAIN_ANCHOR", "FILE")]
Embedded = Annotated[bool, _option(
    "--trust-embedded-keys", "Without an anchor, believe whatever keys the train carries, as train_lib does. Unsafe.",
    _TRUST)]
Train = Annotated[str | None, _option(
    "--train", "Id of the train that you mean, where its repository's name does not tell.", _TRUST, "DTRAIN_TRAIN",
    "ID")]
MaxStale = Annotated[str | None, _option(
    "--max-stale", "Accept snapshot and timestamp that expired up to this long ago, such as 12h or 7d.", _TRUST,
    "DTRAIN_MAX_STALE", "TIME")]
TrustRepository = Annotated[str | None, _option(
    "--trust-repository", "Where signed metadata is kept: in REF/NAME. Default: the anchor's, else the train's own "
                          "repository.", _TRUST, "DTRAIN_TRUST_REPOSITORY", "REF")]
StateDir = Annotated[Path | None, _option("--state-dir", "Where learned facts are kept.", _TRUST, "DTRAIN_STATE_DIR",
                                          "DIR")]
Host = Annotated[str | None, _option("--registry", "The registry of references that name none.", _REGISTRY,
                                     "DTRAIN_REGISTRY", "HOST")]
PlainHttp = Annotated[bool, _option("--plain-http", "Use http although the registry is not on this machine.",
                                    _REGISTRY, "DTRAIN_PLAIN_HTTP")]
CaFile = Annotated[Path | None, _option("--ca-file", "CAs that may vouch for the registry, PEM.", _REGISTRY,
                                        "DTRAIN_CA_FILE", "FILE")]
ClientCert = Annotated[Path | None, _option("--client-cert", "Client certificate for the registry, PEM.", _REGISTRY,
                                            "DTRAIN_CLIENT_CERT", "FILE")]
ClientKey = Annotated[Path | None, _option("--client-key", "Key of the client certificate, PEM.", _REGISTRY,
                                           "DTRAIN_CLIENT_KEY", "FILE")]
Json = Annotated[bool, _option("--json", "Print one JSON object instead of text.", _OUTPUT)]
Quiet = Annotated[bool, _option("--quiet", "Print no warnings and no progress.", _OUTPUT)]
ProgressMode = Annotated[Progress, _option("--progress", "When to show progress.", _OUTPUT, "DTRAIN_PROGRESS")]

_FROM_FILE = {
    "station": str, "key": str, "key_password_file": str, "anchor": str, "state_dir": str, "registry": str,
    "signing_key": str, "trust_repository": str, "plain_http": bool, "ca_file": str, "client_cert": str,
    "client_key": str, "progress": str,
}  # no secrets, and nothing that switches a check off


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Where things are, and how to talk to people."""

    state_dir: StateDir = None
    registry: Host = None
    plain_http: PlainHttp = False
    ca_file: CaFile = None
    client_cert: ClientCert = None
    client_key: ClientKey = None
    json: Json = False
    quiet: Quiet = False
    progress: ProgressMode = Progress.AUTO

    def reference(self, text: str) -> Reference:
        """Return the reference that ``text`` spells."""
        from dtrain.oci.reference import Reference

        return Reference.parse(text, default_host=self.registry)

    def context(self, believing: Believing | None = None) -> Context:
        """Return what the flows need."""
        from dtrain.flow.context import Context
        from dtrain.flow.station import connector
        from dtrain.trust.state import State

        if (self.client_cert is None) != (self.client_key is None):
            raise UsageProblem("--client-cert and --client-key: expected both or none, got one")
        cert = (self.client_cert, self.client_key) if self.client_cert and self.client_key else None
        shown = self.progress is Progress.ALWAYS or (
            self.progress is Progress.AUTO and sys.stderr.isatty() and not self.quiet and not self.json)
        believing = believing or Believing()
        return Context(
            connect=connector(plain_http=self.plain_http, ca_file=self.ca_file, client_cert=cert,
                              username=os.environ.get("DTRAIN_USERNAME"), password=os.environ.get("DTRAIN_PASSWORD"),
                              progress=output.progress() if shown else None),
            state=State(self.state_dir or State.default_folder(os.environ)),
            warn=self.warn, train=believing.train, max_stale=duration(believing.max_stale),
            trust_repository=believing.trust_repository,
        )

    def warn(self, text: str) -> None:
        """Show a warning, unless told not to."""
        if not self.quiet:
            output.warn(text)

    def note(self, text: str) -> None:
        """Tell something that is not the result, unless told not to."""
        if not self.quiet:
            output.note(text)

    def result(self, text: str, schema: str, members: dict[str, Any]) -> None:
        """Print the result, as text or as one object."""
        output.result(text, as_json=self.json, schema=schema, members=members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Believing:
    """What is trusted."""

    anchor: AnchorFile = None
    trust_embedded_keys: Embedded = False
    train: Train = None
    max_stale: MaxStale = None
    trust_repository: TrustRepository = None

    def trust(self) -> Anchor | EmbeddedKeys:
        """Return what is to be believed; the warning about embedded keys is shown even when quiet."""
        from dtrain.flow.station import choose_trust
        from dtrain.trust.anchor import EmbeddedKeys

        chosen = choose_trust(self.anchor, trust_embedded_keys=self.trust_embedded_keys)
        if isinstance(chosen, EmbeddedKeys):
            output.warn("TRUSTING THE KEYS THAT THE TRAIN ITSELF CARRIES: whoever can write to the registry can "
                        "exchange them all, add himself to the route and read the results. Use --anchor FILE.")
        return chosen

    def rooted(self) -> Anchor:
        """Return the anchor, which has to name a root."""
        from dtrain.trust.anchor import Anchor

        chosen = self.trust()
        if not isinstance(chosen, Anchor) or chosen.root is None:
            raise UsageProblem("anchor: expected one with a root, got none", hint="docs/anchor.rst shows one")
        return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Your own keys."""

    key: KeyFile = None
    key_password_file: PasswordFile = None
    signing_key: SigningKeyFile = None

    def private(self, around: Surroundings) -> PrivateKey:
        """Return the RSA key."""
        from dtrain.keystore.pem import read_private_key

        return read_private_key(self._file(self.key), password=key_password(self.key_password_file), warn=around.warn)

    def signing(self) -> SigningKey:
        """Return the key that signs metadata."""
        from dtrain.keystore.pem import read_signing_key

        return read_signing_key(self._file(self.signing_key or self.key),
                                password=key_password(self.key_password_file))

    def _file(self, path: Path | None) -> Path:
        if path is None:
            raise UsageProblem("key: expected --key FILE, got none", hint="or set DTRAIN_KEY or PRIVATE_KEY_PATH")
        return path


_GROUPS = (Surroundings, Believing, Keys)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Return ``command`` with each parameter that is a group of options replaced by those options."""
    hints = get_type_hints(command, include_extras=True)
    own, groups = [], {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if kind in _GROUPS:
            groups[parameter.name] = kind
        else:
            own.append(parameter.replace(annotation=kind))
    for kind in sorted(groups.values(), key=_GROUPS.index, reverse=True):
        kinds = get_type_hints(kind, include_extras=True)
        own += [inspect.Parameter(member.name, inspect.Parameter.KEYWORD_ONLY, annotation=kinds[member.name],
                                  default=member.default) for member in fields(kind)]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: kind(**{member.name: given.pop(member.name) for member in fields(kind)})
                for name, kind in groups.items()}
        command(**given, **made)

    run.__annotations__ = {parameter.name: parameter.annotation for parameter in own}
    run.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    return run


def duration(text: str | None) -> timedelta:
    """Return the time that a number and one of ``m``, ``h``, ``d``, ``w`` spell.

    Raises:
        UsageProblem: something else.
    """
    if text is None:
        return timedelta(0)
    units = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    match = re.fullmatch(r"([0-9]{1,5})([mhdw])", text)
    if match is None:
        raise UsageProblem(f"time: expected a number and one of m, h, d, w, such as 12h, got {text!r}")
    return timedelta(**{units[match[2]]: int(match[1])})


def key_password(password_file: Path | None) -> Secret[str] | None:
    """Return the key's password from the file or the environment, if there is one."""
    from dtrain.crypto.secret import Secret
    from dtrain.keystore.pem import read_password

    if password_file is not None:
        return read_password(password_file)
    text = os.environ.get("DTRAIN_KEY_PASSWORD") or os.environ.get("PRIVATE_KEY_PASSWORD")
    return Secret(text) if text else None


def require_station(station: str | None) -> str:
    """Return the station's id."""
    if not station:
        raise UsageProblem("station: expected --station ID, got none", hint="or set DTRAIN_STATION or STATION_ID")
    return station


def from_files() -> dict[str, Any]:
    """Return defaults from ``dtrain.toml`` in the current folder, else in the user's config folder.

    Raises:
        MalformedInput: not TOML, or a setting that is unknown or of the wrong type.
    """
    import tomllib

    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    for path in (Path("dtrain.toml"), Path(config, "dtrain", "dtrain.toml")):
        try:
            document = tomllib.loads(path.read_text())
        except OSError:
            continue
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise MalformedInput(f"{path}: expected TOML, got an error: {error}") from None
        settings = {name.replace("-", "_"): value for name, value in document.items()}
        for name, value in settings.items():
            if name not in _FROM_FILE or not isinstance(value, _FROM_FILE[name]):
                raise MalformedInput(f"{path}: expected one of {', '.join(_FROM_FILE)}, each of its type, got {name!r}")
        return settings
    return {}
