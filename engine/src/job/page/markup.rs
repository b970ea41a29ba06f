//! Text, numbers and tables as markup. What comes in is text; what goes out is markup.

use std::time::{Duration, UNIX_EPOCH};

/// Text, escaped. Characters that XML does not have, or that turn text around, are named.
pub(super) fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            _ if c.is_control() || is_odd(c) => out.extend(c.escape_unicode()),
            _ => out.push(c),
        }
    }
    out
}

fn is_odd(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// At most `max` bytes of it, from its start.
pub(super) fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A moment, to the second.
pub(super) fn moment(at_ms: u64) -> String {
    // What the formatter can show ends with the year 9999.
    let at = at_ms.min(MOMENT_MS_MAX);
    let at = UNIX_EPOCH + Duration::from_millis(at);
    humantime::format_rfc3339_seconds(at).to_string()
}

const MOMENT_MS_MAX: u64 = 253_402_300_799_000;

/// Seconds for people.
pub(super) fn seconds(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    match value {
        ..120.0 => format!("{value:.1} s"),
        ..7200.0 => format!("{:.1} min", value / 60.0),
        _ => format!("{:.1} h", value / 3600.0),
    }
}

/// Bytes for people.
pub(super) fn bytes(value: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "rounded anyway")]
    let value = value as f64;
    scaled(value)
}

/// The same of any number of bytes.
pub(super) fn scaled(value: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = value;
    let mut at = 0;
    while value >= 1024.0 && at + 1 < units.len() {
        value /= 1024.0;
        at += 1;
    }
    match at {
        0 => format!("{value:.0} B"),
        _ => format!("{value:.1} {}", units[at]),
    }
}

/// A part of the page.
pub(super) fn section(head: &str, body: &str) -> String {
    format!("<section><h2>{head}</h2>\n{body}</section>\n")
}

/// A table of markup; the oldest rows are left out where it would be too long.
pub(super) fn table(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let row = |cells: Vec<String>| {
        let cells = cells.iter().map(|cell| format!("<td>{cell}</td>"));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let (rows, left_out) = newest_within(rows.into_iter().map(row).collect(), super::TABLE_LEN_MAX);
    if rows.is_empty() {
        return "<p>None.</p>".to_owned();
    }
    let heads = heads.iter().map(|head| format!("<th>{head}</th>"));
    let note = match left_out {
        0 => String::new(),
        count => format!("<p>{count} older rows are left out.</p>"),
    };
    format!(
        "{note}<table><thead><tr>{}</tr></thead><tbody>\n{}</tbody></table>",
        heads.collect::<String>(),
        rows.concat()
    )
}

/// The last of `parts` that have at most `len_max` bytes together, and how many are left out.
pub(super) fn newest_within(mut parts: Vec<String>, len_max: usize) -> (Vec<String>, usize) {
    let mut len = 0;
    let newest_first = parts.iter().rev();
    let kept = newest_first
        .take_while(|part| {
            len += part.len();
            len <= len_max
        })
        .count();
    let left_out = parts.len() - kept;
    (parts.split_off(left_out), left_out)
}
