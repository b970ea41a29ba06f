//! Every run, and what they come to.

use std::fmt::Write as _;
use std::fs;
use std::io::Result;
use std::path::Path;

use crate::contender::Outcome;

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) size_gib: u64,
    pub(crate) percent: String,
    pub(crate) layout: String,
    pub(crate) cache: String,
    pub(crate) round: usize,
    pub(crate) contender: String,
    /// Processors that were busy with something else just before.
    pub(crate) busy: f64,
    pub(crate) outcome: Outcome,
}

impl Row {
    /// What is the same for all rounds and contenders that can be compared.
    fn setting(&self) -> String {
        format!(
            "{} {} % {} {}",
            self.case, self.percent, self.layout, self.cache
        )
    }

    pub(crate) fn print(&self) {
        let Outcome {
            seconds,
            cpu_seconds,
            ..
        } = self.outcome;
        let Self {
            round,
            contender,
            busy,
            ..
        } = self;
        println!(
            "  {round} {contender:52} {seconds:7.3} s  cpu {cpu_seconds:6.2} s  busy {busy:.2}"
        );
    }
}

/// The medians of one contender in one setting.
#[derive(Clone, Debug)]
pub(crate) struct Middle {
    pub(crate) setting: String,
    pub(crate) contender: String,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) wire_bytes: Option<u64>,
    pub(crate) runs: usize,
}

/// All runs, and the machine's facts.
#[derive(Debug)]
pub(crate) struct Table {
    facts: Vec<(&'static str, String)>,
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new(facts: Vec<(&'static str, String)>) -> Self {
        let rows = Vec::new();
        Self { facts, rows }
    }

    pub(crate) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// One line for each contender in each setting, in the order of their first runs.
    pub(crate) fn middles(&self) -> Vec<Middle> {
        let mut keys: Vec<(String, String)> = Vec::new();
        for row in &self.rows {
            let key = (row.setting(), row.contender.clone());
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let middle = |(setting, contender): (String, String)| {
            let is_it = |row: &&Row| row.setting() == setting && row.contender == contender;
            let rows: Vec<&Row> = self.rows.iter().filter(is_it).collect();
            let of = |value: fn(&Outcome) -> f64| {
                median(rows.iter().map(|row| value(&row.outcome)).collect())
            };
            Middle {
                seconds: of(|outcome| outcome.seconds),
                cpu_seconds: of(|outcome| outcome.cpu_seconds),
                wire_bytes: rows.first().and_then(|row| row.outcome.wire_bytes),
                runs: rows.len(),
                setting,
                contender,
            }
        };
        keys.into_iter().map(middle).collect()
    }

    /// Prints the medians of the last setting, and their ratios to the floors.
    pub(crate) fn summarise(&self) {
        let Some(last) = self.rows.last() else {
            return;
        };
        let setting = last.setting();
        let mut middles = self.middles();
        middles.retain(|middle| middle.setting == setting);
        let floors: Vec<Middle> = middles
            .iter()
            .filter(|m| is_floor(&m.contender))
            .cloned()
            .collect();
        println!("{setting}: medians, and times each floor");
        for Middle {
            contender,
            seconds,
            cpu_seconds,
            wire_bytes,
            runs,
            ..
        } in &middles
        {
            let mut line =
                format!("  {contender:52} {seconds:7.3} s  cpu {cpu_seconds:6.2} s  {runs} runs");
            for floor in &floors {
                let name = floor.contender.trim_start_matches("floor: ");
                let _ = write!(line, "  {name} {:.2}", seconds / floor.seconds);
            }
            if let Some(bytes) = wire_bytes {
                let _ = write!(line, "  wire {bytes}");
            }
            println!("{line}");
        }
    }

    pub(crate) fn write_csv(&self, path: &Path) -> Result<()> {
        let mut text = String::new();
        for (name, value) in &self.facts {
            let _ = writeln!(text, "# {name}: {value}");
        }
        text += "case,size_gib,percent,layout,cache,round,contender,seconds,cpu_seconds,";
        text += "wire_bytes,cpus_busy_before\n";
        for row in &self.rows {
            let Row {
                case,
                size_gib,
                percent,
                layout,
                cache,
                round,
                contender,
                ..
            } = row;
            let Outcome {
                seconds,
                cpu_seconds,
                wire_bytes,
            } = row.outcome;
            let wire = wire_bytes.map_or_else(String::new, |bytes| bytes.to_string());
            let _ = write!(
                text,
                "{case},{size_gib},{percent},{layout},{cache},{round},{contender},"
            );
            let _ = writeln!(text, "{seconds:.3},{cpu_seconds:.2},{wire},{:.2}", row.busy);
        }
        fs::write(path, text)?;
        println!("recorded: {}", path.display());
        Ok(())
    }
}

pub(crate) fn is_floor(contender: &str) -> bool {
    contender.starts_with("floor: ")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 if middle > 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values.get(middle).copied().unwrap_or(f64::NAN),
    }
}
