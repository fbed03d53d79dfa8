"""Settings: read from the environment, every mistake named at once, documented row by row."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from decimal import Decimal
from pathlib import Path

import pytest

from payswitch.settings import ProcessorSettings, Settings, SettingsError, Variable, variables
from tests.documented import REPOSITORY
from tests.support import PROCESSORS

DOCUMENT = REPOSITORY / "docs" / "settings.md"
VARIABLES = variables()
IN_GENERAL = variables(["<name>"])
"""As the document has them: a row for the same variable of every processor."""
RANGES = {
    field: (int(found[1]), int(found[2]))
    for field, variable in VARIABLES.items()
    if (found := re.fullmatch(r"a whole number from (\d+) to (\d+)", variable.allowed))
}
CHOICES = {
    field: variable.allowed.removeprefix("one of ").split(", ")
    for field, variable in VARIABLES.items()
    if variable.allowed.startswith("one of ")
}
SECRETS = [field for field, variable in VARIABLES.items() if variable.secret]
SECRET_VALUES = {"redis_url": "redis://:hunter2@elsewhere"} | {
    field: f"http://user:hunter2@{field.partition('.')[0]}"
    for field in SECRETS
    if field.endswith(".url")
}
URLS = [field for field, variable in VARIABLES.items() if variable.allowed.startswith("a URL")]


def errors_of(**environment: str) -> str:
    """The message that these variables are refused with."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(environment)
    return str(caught.value)


# Defaults.


def test_the_defaults_are_valid() -> None:
    assert Settings.from_environment({}) == Settings()


@pytest.mark.parametrize("field", VARIABLES)
def test_an_empty_variable_means_its_default(field: str) -> None:
    assert Settings.from_environment({VARIABLES[field].name: ""}) == Settings()


@pytest.mark.parametrize("field", VARIABLES)
def test_a_default_is_among_the_allowed_values(field: str) -> None:
    default = Settings().value(field)
    assert not default or VARIABLES[field].parse(str(default)) == default


def test_the_process_environment_is_read_where_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PAYSWITCH_WORKER_SLOTS", "7")
    assert Settings.from_environment().worker_slots == 7


def test_other_variables_are_ignored() -> None:
    assert Settings.from_environment({"PATH": "/bin", "PAYSWITCH_UNKNOWN": "x"}) == Settings()


def test_no_two_settings_share_a_variable() -> None:
    names = [variable.name for variable in VARIABLES.values()]
    assert len(set(names)) == len(names)


# Values.


@pytest.mark.parametrize("field", RANGES)
def test_both_ends_of_a_range_are_allowed(field: str) -> None:
    low, high = RANGES[field]
    parse = VARIABLES[field].parse
    assert (parse(str(low)), parse(str(high))) == (low, high)


@pytest.mark.parametrize("field", RANGES)
@pytest.mark.parametrize("beyond", ["low", "high"])
def test_a_number_out_of_its_range_is_named(field: str, beyond: str) -> None:
    low, high = RANGES[field]
    name = VARIABLES[field].name
    value = str(low - 1 if beyond == "low" else high + 1)
    assert f"{name}='{value}': must be {VARIABLES[field].allowed}" in errors_of(**{name: value})


@pytest.mark.parametrize("field", RANGES)
@pytest.mark.parametrize("value", ["abc", "1.5", "1e3", "0x10", "ten", "--1", "1 000", "NaN"])
def test_what_is_no_whole_number_is_named(field: str, value: str) -> None:
    name = VARIABLES[field].name
    assert f"{name}='{value}'" in errors_of(**{name: value})


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in CHOICES.items() for value in values]
)
def test_every_choice_is_allowed(field: str, value: str) -> None:
    assert VARIABLES[field].parse(value) == value


@pytest.mark.parametrize("field", CHOICES)
@pytest.mark.parametrize("value", ["maybe", "OPEN", "Info", " warn", "open,off"])
def test_a_value_that_is_no_choice_is_named(field: str, value: str) -> None:
    name = VARIABLES[field].name
    assert f"{name}='{value}': must be {VARIABLES[field].allowed}" in errors_of(**{name: value})


@pytest.mark.parametrize("code", ["brl", "XAU", "DEM", "R$", "BRL "])
def test_what_is_no_currency_is_named(code: str) -> None:
    refused = errors_of(PAYSWITCH_CURRENCY=code)
    assert f"PAYSWITCH_CURRENCY={code!r}: must be the code of a currency in ISO 4217" in refused


def test_the_currency_has_its_decimals() -> None:
    settings = Settings.from_environment({"PAYSWITCH_CURRENCY": "BHD"})
    assert (settings.currency.code, settings.currency.decimals) == ("BHD", 3)


@pytest.mark.parametrize("field", URLS)
@pytest.mark.parametrize(
    "value",
    ["redis", "127.0.0.1:6379", "ftp://host", "http://", "redis://", "//host", "http://host:99999"],
)
def test_what_is_no_url_is_named(field: str, value: str) -> None:
    name = VARIABLES[field].name
    assert f"{name}='{value}': must be {VARIABLES[field].allowed}" in errors_of(**{name: value})


@pytest.mark.parametrize("field", ["default.url", "fallback.url"])
@pytest.mark.parametrize(
    "value",
    [
        "http://:8001",
        "http:///payments",
        "http://host:port",
        "http://[::1",
        "http://host/pay?key=1",
        "http://host/pay#there",
        "http://ho st",
        "http://host\n",
    ],
)
def test_a_processor_url_without_a_good_host_and_port_is_named(field: str, value: str) -> None:
    name = VARIABLES[field].name
    assert f"{name}={value!r}" in errors_of(**{name: value})


@pytest.mark.parametrize(
    "value",
    [
        "redis://host:port",
        "redis://host/zero",
        "redis://host/-1",
        "redis://ho st",
        "redis://host/0#there",
        "unix://",
    ],
)
def test_a_redis_url_that_leads_nowhere_is_named(value: str) -> None:
    assert f"REDIS_URL='{value}': must be a URL" in errors_of(REDIS_URL=value)


@pytest.mark.parametrize(
    "value",
    [
        "redis://127.0.0.1:6379/0",
        "redis://host?db=2&client_name=payswitch",
        "rediss://user:word@redis.example/3",
        "redis://[::1]:6379",
        "unix:///run/redis.sock",
        "unix:/run/redis.sock",
    ],
)
def test_a_redis_url_is_taken_as_it_is(value: str) -> None:
    assert Settings.from_environment({"REDIS_URL": value}).redis_url == value


def test_a_processor_url_loses_its_last_slash() -> None:
    chosen = Settings.from_environment({"PAYMENT_PROCESSOR_URL_DEFAULT": "https://pay.example/a/"})
    assert chosen.processor_urls["default"] == "https://pay.example/a"


def test_the_processors_are_named_the_cheaper_one_first() -> None:
    chosen = Settings().with_urls(fallback="http://b", default="http://a")
    assert list(chosen.processor_urls.items()) == [
        ("default", "http://a"),
        ("fallback", "http://b"),
    ]


# Errors.


def test_all_errors_are_named_at_once() -> None:
    message = errors_of(
        PAYSWITCH_LEASE_MS="soon",
        REDIS_URL="nowhere",
        PAYSWITCH_LOG_LEVEL="loud",
        PAYSWITCH_PURGE="token",
    )
    names = re.findall(r"(?:^|; )([A-Z_]+)=", message)
    assert names == ["REDIS_URL", "PAYSWITCH_LEASE_MS", "PAYSWITCH_LOG_LEVEL", "PAYSWITCH_PURGE"]


def test_an_error_names_no_variable_that_is_right() -> None:
    message = errors_of(PAYSWITCH_LEASE_MS="soon", PAYSWITCH_WORKER_SLOTS="7")
    assert message == "PAYSWITCH_LEASE_MS='soon': must be a whole number from 200 to 86400000"


def test_a_contradiction_names_the_values() -> None:
    assert errors_of(PAYSWITCH_LEASE_MS="900", PAYSWITCH_LEASE_MARGIN_MS="800") == (
        "PAYSWITCH_LEASE_MS='900', PAYSWITCH_PROCESSOR_MAX_DELAY_MS='10000', "
        "PAYSWITCH_LEASE_MARGIN_MS='800': PAYSWITCH_LEASE_MS must be above "
        "PAYSWITCH_PROCESSOR_MAX_DELAY_MS plus PAYSWITCH_LEASE_MARGIN_MS"
    )


def test_what_is_wrong_by_itself_contradicts_nothing() -> None:
    message = errors_of(PAYSWITCH_LEASE_MS="30 s", PAYSWITCH_PROCESSOR_MAX_DELAY_MS="20000")
    assert message == "PAYSWITCH_LEASE_MS='30 s': must be a whole number from 200 to 86400000"


def test_each_problem_tells_its_variables() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"PAYSWITCH_LEASE_MS": "soon", "PAYSWITCH_PURGE": "token"})
    assert [problem.variables for problem in caught.value.problems] == [
        ("PAYSWITCH_LEASE_MS",),
        ("PAYSWITCH_PURGE", "PAYSWITCH_PURGE_TOKEN"),
    ]


def test_a_value_that_fills_the_screen_is_cut() -> None:
    message = errors_of(PAYSWITCH_LEASE_MS="9" * 5000)
    assert f"'{'9' * 200}…'" in message
    assert len(message) < 300


def test_a_value_that_is_no_text_is_named_on_one_line() -> None:
    message = errors_of(PAYSWITCH_LEASE_MS="\udcff\x1b[2J\n")
    assert message.isprintable()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PAYSWITCH_PURGE": "token"}, "PAYSWITCH_PURGE_TOKEN go together"),
        ({"PAYSWITCH_PURGE_TOKEN": "x"}, "PAYSWITCH_PURGE_TOKEN go together"),
        (
            {"PAYSWITCH_LEASE_MS": "10500"},
            "PAYSWITCH_LEASE_MS must be above PAYSWITCH_PROCESSOR_MAX_DELAY_MS plus",
        ),
        (
            {"PAYSWITCH_RETENTION_MS": "25000"},
            "PAYSWITCH_RETENTION_MS must be above PAYSWITCH_LEASE_MS plus",
        ),
        (
            {
                "PAYMENT_PROCESSOR_URL_DEFAULT": "http://one:80",
                "PAYMENT_PROCESSOR_URL_FALLBACK": "http://one:80/",
            },
            "PAYMENT_PROCESSOR_URL_DEFAULT and PAYMENT_PROCESSOR_URL_FALLBACK must differ",
        ),
    ],
)
def test_a_contradiction_is_named(environment: dict[str, str], message: str) -> None:
    assert message in errors_of(**environment)


@pytest.mark.parametrize(
    "environment",
    [
        {"PAYSWITCH_PURGE": "token", "PAYSWITCH_PURGE_TOKEN": "a"},
        {"PAYSWITCH_PURGE": "open"},
        {"PAYSWITCH_LEASE_MS": "10501"},
    ],
)
def test_what_is_just_no_contradiction_is_allowed(environment: dict[str, str]) -> None:
    assert Settings.from_environment(environment) != Settings()


@pytest.mark.parametrize(
    "environment",
    [
        {"REDIS_URL": "rdis://user:hunter2@redis:6379/0"},
        {"REDIS_URL": "redis://:hunter2@redis:99999/0"},
        {"PAYMENT_PROCESSOR_URL_DEFAULT": "http://user:hunter2@host:port"},
        {"PAYSWITCH_PURGE_TOKEN": "hunter2", "PAYSWITCH_LEASE_MS": "soon"},
        {"REDIS_URL": "redis://:hunter2@redis:6379/0", "PAYSWITCH_LEASE_MS": "soon"},
        {"REDIS_URL": ":hunter2@redis:6379/0"},
        {"REDIS_URL": "//:hunter2@redis:6379/0"},
        {"REDIS_URL": "rdis://redis:6379/0?password=hunter2"},
        {"PAYSWITCH_PURGE_TOKEN": "hunter2"},
        {"PAYSWITCH_PURGE_TOKEN": "hunter2\n", "PAYSWITCH_PURGE": "token"},
        {
            "PAYMENT_PROCESSOR_URL_DEFAULT": "http://user:hunter2@one",
            "PAYMENT_PROCESSOR_URL_FALLBACK": "http://user:hunter2@one/",
        },
    ],
)
def test_an_error_shows_no_secret(environment: dict[str, str]) -> None:
    assert "hunter2" not in errors_of(**environment)


# What is shown of a value.


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:hunter2@host:6379/0", "redis://:***@host:6379/0"),
        ("rediss://user:hunter2@host/1", "rediss://user:***@host/1"),
        ("rediss://user:hun:ter@2@host/1", "rediss://user:***@host/1"),
        ("redis://hunter2@host/1", "redis://***@host/1"),
        ("unix://user:hunter2@/run/redis.sock", "unix://user:***@/run/redis.sock"),
        (
            "redis://host?db=1&password=hunter2&health_check_interval=5",
            "redis://host?db=1&password=***&health_check_interval=5",
        ),
        ("redis://host?PASSWORD=hunter2", "redis://host?PASSWORD=***"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert VARIABLES["redis_url"].shown(url) == shown


def test_a_processors_url_is_shown_without_its_password() -> None:
    assert VARIABLES["default.url"].shown("http://user:pw@h/a") == "http://user:***@h/a"


def test_a_token_is_masked_where_there_is_one() -> None:
    assert VARIABLES["purge_token"].shown("hunter2") == "***"
    assert VARIABLES["purge_token"].shown("") == ""


@pytest.mark.parametrize("field", [*RANGES, *CHOICES])
def test_what_is_no_secret_is_shown_as_it_is(field: str) -> None:
    default = Settings().value(field)
    assert VARIABLES[field].shown(default) == default


def test_every_token_and_url_is_marked_as_a_secret() -> None:
    tokens = {field: "all" for field in VARIABLES if "token" in field or "password" in field}
    urls = {field: "password" for field in VARIABLES if "url" in field}
    assert tokens | urls == {
        field: variable.secret for field, variable in VARIABLES.items() if variable.secret
    }


# Secrets in files.


def in_file(folder: Path, content: str | bytes) -> str:
    """The path of a file with this content."""
    path = folder / "secret"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize("field", SECRETS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_stand_in_a_file(field: str, end: str, tmp_path: Path) -> None:
    value = SECRET_VALUES.get(field, "hunter2")
    environment = {f"{VARIABLES[field].name}_FILE": in_file(tmp_path, value + end)}
    if field == "purge_token":
        environment["PAYSWITCH_PURGE"] = "token"
    assert Settings.from_environment(environment).value(field) == value


def test_what_is_no_secret_is_read_from_no_file(tmp_path: Path) -> None:
    environment = {"PAYSWITCH_PURGE_FILE": in_file(tmp_path, "open")}
    assert Settings.from_environment(environment) == Settings()


def test_an_empty_name_of_a_file_names_none() -> None:
    environment = {"REDIS_URL": "redis://elsewhere", "REDIS_URL_FILE": ""}
    assert Settings.from_environment(environment).redis_url == "redis://elsewhere"


def test_a_secret_in_both_places_is_refused(tmp_path: Path) -> None:
    path = in_file(tmp_path, "redis://a")
    message = errors_of(REDIS_URL="redis://:hunter2@a", REDIS_URL_FILE=path)
    assert message == "REDIS_URL and REDIS_URL_FILE are both set: set one of them"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        (b"hunter2\xff", "is not UTF-8"),
        ("x" * 65_537, "is larger than 65536 bytes"),
    ],
)
def test_a_file_that_holds_no_secret_is_named(
    content: str | bytes, reason: str, tmp_path: Path
) -> None:
    path = in_file(tmp_path, content)
    assert errors_of(REDIS_URL_FILE=path) == f"REDIS_URL_FILE='{path}': {reason}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nothing"
    assert errors_of(REDIS_URL_FILE=str(path)) == (
        f"REDIS_URL_FILE='{path}': No such file or directory"
    )


@pytest.mark.skipif(os.getuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = in_file(tmp_path, "redis://a")
    Path(path).chmod(0)
    assert errors_of(REDIS_URL_FILE=path) == f"REDIS_URL_FILE='{path}': Permission denied"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert errors_of(REDIS_URL_FILE=str(path)) == f"REDIS_URL_FILE='{path}': is not a regular file"


@pytest.mark.parametrize("path", ["/", "/dev/null", "a\0b"])
def test_what_is_no_file_is_named_on_one_line(path: str) -> None:
    message = errors_of(REDIS_URL_FILE=path)
    assert message.startswith(f"REDIS_URL_FILE={path!r}: ")
    assert message.isprintable()


@pytest.mark.parametrize(
    "environment",
    [
        {"REDIS_URL": "rdis://hunter2"},
        {"PAYSWITCH_PURGE_TOKEN": "hunter2\x00", "PAYSWITCH_PURGE": "token"},
        {"PAYSWITCH_PURGE_TOKEN": "hunter2"},
        {
            "PAYMENT_PROCESSOR_URL_DEFAULT": "http://hunter2",
            "PAYMENT_PROCESSOR_URL_FALLBACK": "http://hunter2/",
        },
    ],
)
def test_an_error_names_the_file_and_shows_nothing_of_it(
    environment: dict[str, str], tmp_path: Path
) -> None:
    given = {name: value for name, value in environment.items() if name == "PAYSWITCH_PURGE"}
    for name in environment.keys() - given.keys():
        (tmp_path / name).write_text(environment[name])
        given[f"{name}_FILE"] = str(tmp_path / name)
    message = errors_of(**given)
    assert all(path in message for name, path in given.items() if name.endswith("_FILE"))
    assert "hunter2" not in message


# The document.


def row_of(field: str, variable: Variable) -> str:
    """The row of the document's table that says all about one variable."""
    default = Settings.default(field)
    shown = f"`{default}`" if default != "" else "(empty)"
    return f"| `{variable.name}` | {shown} | {variable.allowed} | {variable.purpose} |"


def documented_rows() -> list[str]:
    lines = DOCUMENT.read_text().splitlines()
    return [line for line in lines if line.startswith("| `")]


@pytest.mark.parametrize("field", IN_GENERAL)
def test_every_variable_has_its_row_in_the_document_once(field: str) -> None:
    assert documented_rows().count(row_of(field, IN_GENERAL[field])) == 1


def test_the_document_has_no_other_row_of_a_variable() -> None:
    assert len(documented_rows()) == len(IN_GENERAL)


def test_the_document_begins_with_six_variables_that_there_are() -> None:
    _, _, after = DOCUMENT.read_text().partition("## The six ")
    first = re.findall(r"^\|[^|]*\| `([A-Z_]+)[^`]*` \|", after.partition("\n## ")[0], re.MULTILINE)
    assert len(first) == len({*first} & {variable.name for variable in VARIABLES.values()}) == 6


def test_the_document_names_every_variable_that_may_name_a_file() -> None:
    assert set(re.findall(r"`([A-Z_]+(?:<NAME>)?_FILE)`", DOCUMENT.read_text())) == {
        variable.file_name for variable in IN_GENERAL.values() if variable.file_name
    }


def test_every_field_of_the_settings_is_a_variable() -> None:
    known = {"processors", *(key.partition(".")[0] for key in VARIABLES)} - {*PROCESSORS}
    assert known == {entry.name for entry in fields(Settings)}


# Processors.


def test_each_named_processor_has_its_own_settings() -> None:
    chosen = Settings.from_environment(
        {
            "PAYSWITCH_PROCESSORS": "acme, default",
            "PAYMENT_PROCESSOR_URL_ACME": "https://acme.example/api/",
            "PAYSWITCH_CONNECTOR_ACME": "charges",
            "PAYSWITCH_TOKEN_ACME": "hunter2",
            "PAYSWITCH_FEE_ACME": "0.029",
        }
    )
    acme, default = chosen.processors
    assert acme == ProcessorSettings(
        "acme", "https://acme.example/api", "charges", "hunter2", "0.029"
    )
    assert acme.fixed_fee == Decimal("0.029")
    assert default == Settings().processors[0]
    assert list(chosen.processor_urls) == ["acme", "default"]


@pytest.mark.parametrize(
    "names",
    [
        *(
            "Default",
            "a b",
            "1st",
            "a-b",
            "default,default",
            "auto",
            "a,both",
            "none",
            "x_file",
            "a,,b",
        ),
        *("a" * 33, ",".join(f"p{n}" for n in range(17))),
    ],
)
def test_names_that_can_be_none_are_refused(names: str) -> None:
    message = errors_of(PAYSWITCH_PROCESSORS=names)
    assert message.startswith(f"PAYSWITCH_PROCESSORS={names!r}: must be 1 to 16 different names")


def test_a_processor_without_a_url_is_named() -> None:
    message = errors_of(PAYSWITCH_PROCESSORS="default,acme")
    assert message == "PAYMENT_PROCESSOR_URL_ACME='': the processor acme needs a URL"


@pytest.mark.parametrize("fee", ["1.1", "-0.1", "five", "NaN", "Infinity"])
def test_what_is_no_share_is_named(fee: str) -> None:
    assert f"PAYSWITCH_FEE_DEFAULT='{fee}': must be a share" in errors_of(PAYSWITCH_FEE_DEFAULT=fee)
