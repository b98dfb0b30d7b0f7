"""``dtrain trust``: the root of a consortium, on files; and the metadata of a train, while it travels."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dtrain.cli.options import Believing, Keys, Ref, Surroundings, expanded, key_password
from dtrain.errors import StorageProblem, UsageProblem

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Root

    from dtrain.crypto.signing import SigningKey, VerifyKey
    from dtrain.trust.publish import PublishedState

app = typer.Typer(help="Signed metadata: a consortium's root, and keys and dates of a train on its way.",
                  no_args_is_help=True, rich_markup_mode=None)

RootFile = Annotated[Path, typer.Argument(metavar="ROOT", help="Root metadata, such as root.json.")]
Previous = Annotated[Path | None, typer.Option(
    "--previous", metavar="FILE", help="The version before, whose key holders have to sign too.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write the next version, unsigned.")]
Group = Annotated[str, typer.Argument(metavar="GROUP", help="holder, creator, builder, router or station.")]
Days = Annotated[int, typer.Option("--days", min=1, help="How long the root is valid.")]
Roots = Annotated[list[Path] | None, typer.Option(
    "--root", metavar="FILE", help="A newer version of the root; once for each, in order.")]
Start = Annotated[str | None, typer.Option(
    "--from", metavar="TAG", help="An earlier state (tuf-…) to go back to, when the newest is not valid.")]
BuilderKey = Annotated[Path | None, typer.Option(
    "--builder-key", metavar="FILE", help="The builder's private key, where the root names builders.")]
_GROUPS = {"holder": "keyholders", "creator": "creators", "builder": "builders", "router": "routers",
           "station": "stations"}


def _members(metavar: str, text: str) -> Any:
    return typer.Option(metavar, metavar="ID=FILE", help=text)


@app.command("init")
def init(
    root: RootFile,
    holder: Annotated[list[str], _members("--holder", "Who signs the root: id and public key; once for each.")],
    creator: Annotated[list[str], _members("--creator", "Who makes trains.")],
    threshold: Annotated[int, typer.Option("--threshold", min=1, help="How many holders have to sign.")] = 1,
    station: Annotated[list[str] | None, _members("--station", "Who runs them.")] = None,
    builder: Annotated[list[str] | None, _members("--builder", "Who has to sign trains beside creators.")] = None,
    router: Annotated[list[str] | None, _members("--router", "Who may extend and co-sign.")] = None,
    profile: Annotated[str, typer.Option(
        "--profile", help="Who signs snapshot and timestamp: shared (any one), router (stations propose), "
                          "cosign (two of them).")] = "shared",
    days: Days = 365,
) -> None:
    """Write the first version of a consortium's root, unsigned. Then: dtrain trust sign, by each holder."""
    from dtrain.trust.root import Consortium, Profile, draft_root

    if profile not in list(Profile):
        raise UsageProblem(f"--profile: expected one of {', '.join(Profile)}, got {profile!r}")
    consortium = Consortium(
        keyholders=_keys(holder), threshold=threshold, creators=_keys(creator), builders=_keys(builder),
        routers=_keys(router), stations=_keys(station), profile=Profile(profile))
    _write_new(root, draft_root(consortium, version=1, expires=_in(days)).to_bytes())
    _show(root, None)


@app.command("add-key")
def add_key(root: RootFile, group: Group, member: Annotated[str, typer.Argument(metavar="ID=FILE")], out: Out,
            days: Days = 365) -> None:
    """Write the root's next version with a member's key added or exchanged, unsigned."""
    (name, key), = _keys([member]).items()
    _next(root, group, name, key, out, days)


@app.command("revoke-key")
def revoke_key(root: RootFile, group: Group, member: Annotated[str, typer.Argument(metavar="ID")], out: Out,
               days: Days = 365) -> None:
    """Write the root's next version without a member, unsigned."""
    _next(root, group, member, None, out, days)


def _next(root: Path, group: str, name: str, key: VerifyKey | None, out: Path, days: int) -> None:
    from dtrain.trust.root import draft_root, read_consortium

    if group not in _GROUPS:
        raise UsageProblem(f"group: expected one of {', '.join(_GROUPS)}, got {group!r}")
    current = _read_root(root).signed
    changed = read_consortium(current).with_member(_GROUPS[group], name, key)
    _write_new(out, draft_root(changed, version=current.version + 1, expires=_in(days)).to_bytes())
    _show(out, root)


def sign(*, root: RootFile, previous: Previous = None, keys: Keys) -> None:
    """Add your signature to the root, as one of its holders; the file goes from hand to hand."""
    from dtrain.trust.root import read_consortium, sign_root

    metadata = _read_root(root)
    read_consortium(metadata.signed)  # what the holder would sign has to be what show prints
    sign_root(metadata, keys.signing(), None if previous is None else _read_root(previous).signed)
    draft = root.with_name(root.name + ".partial")
    draft.write_bytes(metadata.to_bytes())
    draft.replace(root)
    _show(root, previous)


@app.command("show")
def show(root: RootFile, previous: Previous = None) -> None:
    """Print who belongs to the consortium, and how many signatures the root still lacks."""
    _show(root, previous)


def _show(root: Path, previous: Path | None) -> None:
    from dtrain.cli import output
    from dtrain.trust.root import GROUPS, missing_signatures, read_consortium

    metadata = _read_root(root)
    consortium = read_consortium(metadata.signed)
    missing = missing_signatures(metadata, None if previous is None else _read_root(previous).signed)
    lines = [f"root {metadata.signed.version}, {consortium.profile}, until {metadata.signed.expires:%Y-%m-%d}: "
             + (f"{missing} more signatures needed" if missing else "signed")]
    lines += [f"{group.removesuffix('s'):<10} {name}  {key.fingerprint}  {key.kind}"
              for group in GROUPS for name, key in consortium.group(group).items()]
    output.result(output.shown("\n".join(lines)), as_json=False, schema="", members={})


def refresh(*, ref: Ref, root: Roots = None, start: Start = None, keys: Keys, believing: Believing,
            around: Surroundings) -> None:
    """Give the next station more time, join what others published at the same moment, make a newer root known."""
    from dtrain.flow.tend import refresh as flow

    _tell(around, flow(around.reference(ref), anchor=believing.rooted(), signing=keys.signing(), start=start,
                       roots=_read_all(root), context=around.context(believing)))


def rotate(*, ref: Ref, station: Annotated[str, typer.Argument(metavar="ID=FILE", help="Station and new public key.")],
           root: Roots = None, start: Start = None, builder_key: BuilderKey = None, keys: Keys, believing: Believing,
           around: Surroundings) -> None:
    """Exchange the key that a station signs metadata with; for the creator."""
    (name, key), = _keys([station]).items()
    _exchange(ref, name, key, root, start, builder_key, keys, believing, around)


def revoke(*, ref: Ref, station: Annotated[str, typer.Argument(metavar="ID")], root: Roots = None, start: Start = None,
           builder_key: BuilderKey = None, keys: Keys, believing: Believing, around: Surroundings) -> None:
    """Take away a station's right to sign metadata; for the creator, who then vouches for its hop himself."""
    _exchange(ref, station, None, root, start, builder_key, keys, believing, around)


def _exchange(ref: str, station: str, key: VerifyKey | None, root: list[Path] | None, start: str | None,
              builder_key: Path | None, keys: Keys, believing: Believing, around: Surroundings) -> None:
    from dtrain.flow.tend import exchange_key

    _tell(around, exchange_key(
        around.reference(ref), station, key, anchor=believing.rooted(), signing=keys.signing(), start=start,
        roots=_read_all(root), builder=_builder(builder_key, keys), context=around.context(believing)))


def cosign(*, ref: Ref, station: Annotated[str, typer.Argument(metavar="ID")], keys: Keys, believing: Believing,
           around: Surroundings) -> None:
    """Sign and publish what a station proposed; for routers and creators, where the root's profile asks for it."""
    from dtrain.flow.tend import cosign as flow

    _tell(around, flow(around.reference(ref), station, anchor=believing.rooted(), signing=keys.signing(),
                       context=around.context(believing)))


def adopt(
    *, ref: Ref, station: Annotated[list[str] | None, _members("--station", "Key that a station signs metadata "
                                                                            "with; default: its RSA key.")] = None,
    code: Annotated[Path | None, typer.Option("--code", metavar="DIR", help="The algorithm's plaintext.")] = None,
    query: Annotated[Path | None, typer.Option("--query", metavar="FILE", help="The plaintext query.")] = None,
    root: Roots = None, dwell_days: Annotated[int, typer.Option("--dwell-days", min=1, max=3650)] = 35,
    builder_key: BuilderKey = None,
    anchor_out: Annotated[Path, typer.Option("--anchor-out", metavar="FILE", help="Anchor to write.")],
    keys: Keys, believing: Believing, around: Surroundings,
) -> None:
    """Add signed metadata to a plain PHT train, new or on its way; for its creator. The anchor pins its keys."""
    from dtrain.flow.tend import adopt as flow
    from dtrain.trust.anchor import Anchor

    anchor = believing.trust()
    if not isinstance(anchor, Anchor) or anchor.root is not None:
        raise UsageProblem("anchor: expected one that pins the train's keys and no root, got another")
    if anchor_out.exists():
        raise UsageProblem(f"{anchor_out}: expected no file there, got one", hint="choose another --anchor-out")
    published, text = flow(
        around.reference(ref), anchor=anchor, signing=keys.signing(), stations=_keys(station), code=code,
        query=None if query is None else _read(query),
        roots=_read_all(root), dwell_days=dwell_days, builder=_builder(builder_key, keys),
        context=around.context(believing))
    anchor_out.write_text(text)
    _tell(around, published)


def _builder(path: Path | None, keys: Keys) -> SigningKey | None:
    from dtrain.keystore.pem import read_signing_key

    return None if path is None else read_signing_key(path, password=key_password(keys.key_password_file))


def _tell(around: Surroundings, published: PublishedState) -> None:
    from dtrain.trust.artifact import parse_name

    hops = sorted(named[0] for name in published.files if (named := parse_name(name)) is not None
                  and named[0].startswith("hop-"))
    around.note(f"state {published.version} has metadata of {', '.join(hops) or 'no hop yet'}")
    if not published.complete:
        around.note("another signature is needed: this state is a proposal")
    around.result(f"{published.artifact.digest}  version {published.version}", "dtrain/trust/v1", {
        "digest": str(published.artifact.digest), "version": published.version, "complete": published.complete})


for _command in (sign, refresh, rotate, revoke, cosign, adopt):
    app.command(_command.__name__)(expanded(_command))


def _keys(members: list[str] | None) -> dict[str, VerifyKey]:
    from dtrain.keystore.pem import read_verify_key

    found = {}
    for text in members or ():
        name, equals, path = text.partition("=")
        if not name or not equals or not path:
            raise UsageProblem(f"member: expected ID=FILE, got {text!r}")
        if name in found:
            raise UsageProblem(f"member: expected each id once, got {name!r} twice")
        found[name] = read_verify_key(Path(path), of=name)
    return found


def _in(days: int) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageProblem(f"{path}: expected a readable file, got: {error.strerror}") from None


def _read_all(paths: list[Path] | None) -> tuple[bytes, ...]:
    return tuple(_read(path) for path in paths or ())


def _read_root(path: Path) -> Metadata[Root]:
    from dtrain.trust.root import parse_root

    return parse_root(_read(path), what=str(path))


def _write_new(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as out:
            out.write(data)
    except OSError as error:
        raise StorageProblem(f"{path}: expected to make this file, got: {error.strerror}",
                             hint="choose another name") from None
