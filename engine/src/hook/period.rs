//! Lengths of time as they are written: `90s`, `2m`.

use std::time::Duration;

/// Reads a whole number and its unit: `ms`, `s`, `m`, `h`.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a length of time: 500ms, 90s, 2m, 1h");
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(end.ok_or_else(wrong)?);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let scale = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let all = number.checked_mul(scale).filter(|all| *all <= LONGEST_MS);
    let all = all.ok_or_else(|| format!("`{text}` is more than a week"))?;
    match all {
        0 => Err(format!("`{text}` is no time at all")),
        all => Ok(Duration::from_millis(all)),
    }
}

/// Writes it so that [`parse`] reads the same; what is shorter than a millisecond is left out.
pub(super) fn show(time: Duration) -> String {
    let all = time.as_millis();
    match all % 1_000 {
        0 => format!("{}s", all / 1_000),
        _ => format!("{all}ms"),
    }
}

/// A week: nobody waits longer for one command, and sums of a few never overflow.
const LONGEST_MS: u64 = 7 * 24 * 3_600_000;

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: what is documented is read, everything else refused. Method: a list of each.
    #[test]
    fn units_are_read_and_nothing_else() {
        let right = [
            ("500ms", 500),
            ("90s", 90_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("168h", LONGEST_MS),
        ];
        for (text, ms) in right {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        let wrong = [
            "",
            "s",
            "90",
            "90 s",
            "-1s",
            "1.5s",
            "1d",
            "90S",
            "0s",
            "169h",
            "1s2m",
            "+1s",
            "99999999999999999999s",
            "18446744073709551615h",
        ];
        for text in wrong {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    // Goal: what is saved is read back. Method: there and back.
    #[test]
    fn written_lengths_are_read_back() {
        for ms in [1, 999, 1_000, 1_500, 60_000, LONGEST_MS] {
            let time = Duration::from_millis(ms);
            assert_eq!(parse(&show(time)), Ok(time));
        }
    }
}
