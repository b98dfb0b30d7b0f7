"""Options that mean the same in every command, and what is made of them.

Order of precedence: option, ``DTRAIN_*`` environment (and the names that PHT containers use), ``dtrain.toml``, default.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dtrain.cli import output
from dtrain.errors import MalformedInput, UsageProblem

if TYPE_CHECKING:
    from dtrain.crypto.rsa import PrivateKey
    from dtrain.crypto.secret import Secret
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
AnchorFile = Annotated[Path | None, _option("--anchor", "What you trust: keys and base images.", _TRUST,
                                            "DTRAIN_ANCHOR", "FILE")]
Embedded = Annotated[bool, _option(
    "--trust-embedded-keys", "Without an anchor, believe whatever keys the train carries, as train_lib does. Unsafe.",
    _TRUST)]
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
    "plain_http": bool, "ca_file": str, "client_cert": str, "client_key": str, "progress": str,
}  # no secrets, and nothing that switches a check off


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The options that are about where things are, as given."""

    registry: str | None
    plain_http: bool
    ca_file: Path | None
    client_cert: Path | None
    client_key: Path | None
    state_dir: Path | None
    json: bool
    quiet: bool
    progress: Progress

    def reference(self, text: str) -> Reference:
        """Return the reference that ``text`` spells."""
        from dtrain.oci.reference import Reference

        return Reference.parse(text, default_host=self.registry)

    def context(self) -> Context:
        """Return what the flows need."""
        from dtrain.flow.context import Context
        from dtrain.flow.station import connector
        from dtrain.trust.state import State

        if (self.client_cert is None) != (self.client_key is None):
            raise UsageProblem("--client-cert and --client-key: expected both or none, got one")
        cert = (self.client_cert, self.client_key) if self.client_cert and self.client_key else None
        shown = self.progress is Progress.ALWAYS or (
            self.progress is Progress.AUTO and sys.stderr.isatty() and not self.quiet and not self.json)
        return Context(
            connect=connector(plain_http=self.plain_http, ca_file=self.ca_file, client_cert=cert,
                              username=os.environ.get("DTRAIN_USERNAME"), password=os.environ.get("DTRAIN_PASSWORD"),
                              progress=output.progress() if shown else None),
            state=State(self.state_dir or State.default_folder(os.environ)),
            warn=self.warn,
        )

    def warn(self, text: str) -> None:
        """Show a warning, unless told not to."""
        if not self.quiet:
            output.warn(text)


def trust(anchor: Path | None, embedded: bool) -> Anchor | EmbeddedKeys:
    """Return what is to be believed; the warning about embedded keys is shown even when quiet."""
    from dtrain.flow.station import choose_trust
    from dtrain.trust.anchor import EmbeddedKeys

    chosen = choose_trust(anchor, trust_embedded_keys=embedded)
    if isinstance(chosen, EmbeddedKeys):
        output.warn("TRUSTING THE KEYS THAT THE TRAIN ITSELF CARRIES: whoever can write to the registry can exchange "
                    "them all, add himself to the route and read the results. Use --anchor FILE.")
    return chosen


def private_key(path: Path | None, password_file: Path | None, surroundings: Surroundings) -> PrivateKey:
    """Return the private key that the options name."""
    from dtrain.keystore.pem import read_private_key

    if path is None:
        raise UsageProblem("key: expected --key FILE, got none", hint="or set DTRAIN_KEY or PRIVATE_KEY_PATH")
    return read_private_key(path, password=key_password(password_file), warn=surroundings.warn)


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
