//! What is said about connections on the command line.

use std::time::Duration;

use failback_engine::transport::link::{DELAY_MAX, RATE_MIN, Shape};

use crate::size;

/// What the connections of a command are slowed down to.
#[derive(Debug, clap::Args)]
pub(crate) struct LinkArgs {
    /// Send no more than so many bytes per second on each connection to or of an agent, and take no
    /// more: 16K or more, such as 20M
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit_rate: Option<u64>,
    /// Send everything so much later, as over a far link: for tests, such as 25ms
    #[arg(long, value_name = "DURATION", value_parser = parse_delay, hide_short_help = true)]
    link_delay: Option<Duration>,
}

impl LinkArgs {
    pub(crate) fn shape(&self) -> Shape {
        Shape {
            bytes_per_second: self.limit_rate,
            delay: self.link_delay.unwrap_or_default(),
        }
    }
}

fn parse_rate(text: &str) -> Result<u64, String> {
    match size::parse(text.strip_suffix("/s").unwrap_or(text))? {
        rate if rate < RATE_MIN => Err("a rate is 16K or more, in bytes per second".to_owned()),
        rate => Ok(rate),
    }
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let known = || format!("a delay is 1ms ... {}ms", DELAY_MAX.as_millis());
    let millis = text.strip_suffix("ms").and_then(|text| text.parse().ok());
    let delay = millis.map(Duration::from_millis);
    delay
        .filter(|delay| !delay.is_zero() && *delay <= DELAY_MAX)
        .ok_or_else(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: rates and delays mean what they say, within what a link can keep. Method: values at and
    // past the edges.
    #[test]
    fn rates_and_delays() {
        assert_eq!(parse_rate("16K"), Ok(16 << 10));
        assert_eq!(parse_rate("20MiB/s"), Ok(20 << 20));
        for text in ["0", "16383", "20MB", "20M/h", "fast"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
        assert_eq!(parse_delay("25ms"), Ok(Duration::from_millis(25)));
        assert_eq!(parse_delay("2000ms"), Ok(DELAY_MAX));
        for text in ["0ms", "2001ms", "25", "1s", "-1ms"] {
            assert!(parse_delay(text).is_err(), "{text}");
        }
    }
}
