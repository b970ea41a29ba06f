//! What is asked of a plan on the command line.

use std::time::Duration;

use clap::ValueEnum;
use failback_engine::plan::Objective;

/// How the choice between a delta and a full copy is made.
#[derive(Debug, clap::Args)]
pub(crate) struct PlanningArgs {
    /// What the better strategy has less of: time for which the source's machine has to stand still
    /// (a delta can run while it is used, and once more, shortly, after it was stopped), time from
    /// start to end, or bytes on the link
    #[arg(long, value_enum, default_value_t = OptimizeArg::Downtime)]
    optimize: OptimizeArg,
    /// Longest time for which the source's machine may stand still, such as 90s or 5m: a strategy
    /// that is expected to keep it goes before one that is not
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) downtime_budget: Option<Duration>,
    /// Draw the sample of the disks by this number, to draw the same one again
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub(crate) seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OptimizeArg {
    Downtime,
    Time,
    Transfer,
}

impl PlanningArgs {
    pub(crate) fn objective(&self) -> Objective {
        match self.optimize {
            OptimizeArg::Downtime => Objective::Downtime,
            OptimizeArg::Time => Objective::Time,
            OptimizeArg::Transfer => Objective::Transfer,
        }
    }
}

/// Most seconds of a duration: a year.
const DURATION_MAX: u64 = 366 * 24 * 3600;

fn parse_duration(text: &str) -> Result<Duration, String> {
    let known = || "a duration is a whole number and s, m or h".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(known()),
    };
    let number: u64 = number.parse().map_err(|_| known())?;
    let all = number
        .checked_mul(seconds)
        .filter(|all| *all <= DURATION_MAX);
    all.map(Duration::from_secs)
        .ok_or_else(|| "a duration is a year at most".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: durations mean what they say. Method: each unit, and near misses.
    #[test]
    fn durations() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("5m", 300), ("2h", 7200)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in [
            "",
            "5",
            "m",
            "1.5m",
            "-1s",
            "5min",
            "9999h",
            "99999999999999999999s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
