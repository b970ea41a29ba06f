//! The report's fields, as the product promises them.

use serde_json::Value;

/// Bytes that may travel for each GiB compared when nothing differs.
const LINK_PER_GIB_MAX: u64 = 64 << 10;

const COUNTS: &[(&str, &[&str])] = &[
    ("source", &["virtual_size", "block_size"]),
    ("target", &["virtual_size", "block_size"]),
    (
        "bytes",
        &[
            "source_read",
            "target_read",
            "changed",
            "sent",
            "wire_out",
            "wire_in",
            "written",
            "verified",
            "vouched_by_map",
        ],
    ),
    (
        "blocks",
        &[
            "total",
            "hashed",
            "skipped_unallocated",
            "differing",
            "zeroed",
        ],
    ),
];
const SECONDS: &[(&str, &[&str])] = &[("seconds", &["total", "plan", "copy", "verify"])];
/// Null where nothing was predicted.
const PREDICTED: &[(&str, &[&str])] = &[("predicted", &["seconds", "bytes", "downtime"])];
const TEXTS: &[(&str, &[&str])] = &[
    ("source", &["endpoint", "format"]),
    ("target", &["endpoint", "format"]),
];
const OUTCOMES: &[&str] = &[
    "done",
    "unverified",
    "equal",
    "different",
    "refused",
    "failed",
    "interrupted",
];

/// Fails unless the report of a sync has every promised field, each of the right type, and the
/// roots are equal.
///
/// # Panics
///
/// As said.
pub fn assert_done(report: &Value) {
    assert_eq!(report["schema"], "failback.report/1");
    assert_eq!(report["command"], "sync");
    assert_eq!(report["outcome"], "done", "{report}");
    assert!(
        ["delta", "full"]
            .iter()
            .any(|name| report["strategy"] == **name),
        "{report}"
    );
    assert!(report["reasons"].is_array(), "reasons: {report}");
    assert_each(report, COUNTS, Value::is_u64);
    assert_each(report, SECONDS, Value::is_number);
    assert_each(report, TEXTS, Value::is_string);
    assert!(
        report["predicted"]
            .as_object()
            .is_some_and(|all| all.len() == 3),
        "{report}"
    );
    assert_each(report, PREDICTED, |value| {
        value.is_number() || value.is_null()
    });
    assert!(
        report["hash"].is_string() && report["root_block_size"].is_u64(),
        "{report}"
    );
    let root = report["root"]["source"].as_str().expect("root in hex");
    assert!(
        root.len() >= 32 && root.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{root}"
    );
    assert_eq!(report["root"]["source"], report["root"]["target"]);
    let size = count(report, "/source/virtual_size");
    assert_eq!(size, count(report, "/target/virtual_size"));
    assert_eq!(
        count(report, "/blocks/total"),
        size.div_ceil(count(report, "/root_block_size")),
        "{report}"
    );
}

/// Fails unless this is the report of a sync that found nothing to do and said so in few bytes.
///
/// # Panics
///
/// As said.
pub fn assert_nothing_sent(report: &Value) {
    assert_done(report);
    for field in [
        "/bytes/changed",
        "/bytes/sent",
        "/bytes/written",
        "/blocks/differing",
    ] {
        assert_eq!(count(report, field), 0, "{field}: {report}");
    }
    let link = count(report, "/bytes/wire_out") + count(report, "/bytes/wire_in");
    let gib = count(report, "/source/virtual_size").div_ceil(1 << 30);
    assert!(link < LINK_PER_GIB_MAX * gib, "{link} bytes for {gib} GiB");
}

/// Fails unless the report says what failed: outcome and kind as given, a message.
///
/// # Panics
///
/// As said.
pub fn assert_failure(report: &Value, outcome: &str) {
    assert_eq!(report["schema"], "failback.report/1", "{report}");
    assert!(OUTCOMES.contains(&outcome));
    assert_eq!(report["outcome"], outcome, "{report}");
    let error = report["error"].as_object().expect("error in the report");
    assert!(
        error["kind"].as_str().is_some_and(|kind| !kind.is_empty()),
        "{report}"
    );
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "{report}"
    );
    assert!(
        error["path"].is_string() || error["path"].is_null(),
        "{report}"
    );
    assert!(
        error["offset"].is_u64() || error["offset"].is_null(),
        "{report}"
    );
}

/// The whole number at a JSON pointer.
///
/// # Panics
///
/// When there is none.
pub fn count(report: &Value, pointer: &str) -> u64 {
    let value = report
        .pointer(pointer)
        .unwrap_or_else(|| panic!("no {pointer}: {report}"));
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{pointer} is {value}"))
}

fn assert_each(report: &Value, fields: &[(&str, &[&str])], is_right: impl Fn(&Value) -> bool) {
    for (object, names) in fields {
        for name in *names {
            let value = &report[*object][*name];
            assert!(is_right(value), "{object}.{name} is {value}: {report}");
        }
    }
}
