//! Sizes as operators write them.

/// Bytes of `text`: a whole number, then nothing, `K`, `M`, `G`, `T` or `KiB` ... `TiB`, all powers
/// of 1024.
///
/// # Errors
/// A sentence for the operator. `kB`, `MB`, `GB` are refused: half the world means 1000 by them.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        "kB" | "KB" | "MB" | "GB" | "TB" => {
            return Err(format!(
                "`{unit}` may mean 1000 or 1024; write {}iB",
                &unit[..1].to_uppercase()
            ));
        }
        _ => return Err("a size is a number and K, M, G or T (powers of 1024)".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "a size begins with a whole number".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "the size is too large".to_owned())
}

/// Bytes for people: three digits and a binary unit.
pub(crate) fn show(len: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mut value = len as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{len} B"),
        _ if value < 10.0 => format!("{value:.2} {}", UNITS[unit]),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: powers of 1024 and nothing ambiguous. Method: each unit, the refused ones, the edges.
    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, len) in [
            ("0", 0),
            ("512", 512),
            ("64K", 64 << 10),
            ("2MiB", 2 << 20),
            ("64G", 64 << 30),
            ("64T", 64 << 40),
        ] {
            assert_eq!(parse(text), Ok(len), "{text}");
        }
        for text in [
            "",
            "G",
            "1kB",
            "1MB",
            "1GB",
            "1.5G",
            "-1",
            "1X",
            "99999999999T",
            "1 G",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    // Goal: readable numbers. Method: one of each magnitude.
    #[test]
    fn shown_sizes() {
        assert_eq!(show(1023), "1023 B");
        assert_eq!(show(1 << 20), "1.00 MiB");
        assert_eq!(show(64 << 40), "64.0 TiB");
    }
}
