//! failback beside what a user would pick instead, and beside floors that are measured here, on the
//! same files in one interleaved run. `docs/benchmarks.md` says how it measures.
//!
//! ```text
//! cargo bench -p failback-benches --bench peers -- [--case delta|full|vhdx] [--percent P] ...
//! ```

mod chart;
mod contender;
mod disk;
mod floor;
mod link;
mod local;
mod machine;
mod record;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use contender::{Contender, Outcome};
use disk::{Cache, Layout, Place};
use machine::Ballast;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use record::{Row, Table};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// An old target becomes a source of which few blocks differ.
    Delta,
    /// A missing raw target is made from a raw source.
    Full,
    /// A missing dynamic VHDX is made from a dynamic VHDX.
    Vhdx,
}

/// Compares failback with its peers on one disk.
#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long, value_enum, default_value = "delta")]
    case: Case,
    /// Length of the disk, GiB.
    #[arg(long, default_value_t = 4)]
    size: u64,
    /// Shares of 64 KiB blocks that differ, percent.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    percent: Vec<String>,
    #[arg(long, value_enum, value_delimiter = ',', default_value = "scattered")]
    layout: Vec<Layout>,
    #[arg(long, value_enum, value_delimiter = ',', default_value = "hot")]
    cache: Vec<Cache>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only contenders whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Not the contenders whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Options of `sync` for one more contender; once for each.
    #[arg(long, allow_hyphen_values = true)]
    extra: Vec<String>,
    /// Where the disks go; needs five times SIZE. Disks that are there are used again.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The binary that is measured.
    #[arg(long)]
    failback: Option<PathBuf>,
    /// Seconds to wait for idle processors before a run.
    #[arg(long, default_value_t = 20)]
    wait_idle: u64,
    /// GiB of the page cache to be let go of just before each run; else SIZE.
    #[arg(long)]
    ballast: Option<u64>,
    /// Write CSV and SVG files with this name below benches/record/.
    #[arg(long)]
    record: Option<String>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn ballast(&self) -> u64 {
        self.ballast.unwrap_or(self.size)
    }
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    let failback = match &arguments.failback {
        Some(path) => path.clone(),
        None => machine::build_failback()?,
    };
    let scratch = tempfile::tempdir()?;
    let dir = arguments.dir.as_deref().unwrap_or(scratch.path());
    let mut facts = machine::facts(dir, &failback);
    facts.push(("ballast", format!("{} GiB", arguments.ballast())));
    for (name, value) in &facts {
        println!("{name}: {value}");
    }
    let mut table = Table::new(facts);
    for percent in &arguments.percent {
        for layout in &arguments.layout {
            let place = disk::prepare(dir, arguments.size, percent, *layout)?;
            for cache in &arguments.cache {
                let contenders = contenders(&arguments, &failback);
                compare(&arguments, &place, *cache, &contenders, &mut table)?;
            }
        }
    }
    if let Some(name) = &arguments.record {
        let below = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/record"));
        table.write_csv(&below.join(format!("{name}.csv")))?;
        chart::draw(&table, &below.join(format!("{name}.svg")))?;
    }
    Ok(())
}

fn contenders(arguments: &Arguments, failback: &std::path::Path) -> Vec<Contender> {
    let mut all = match arguments.case {
        Case::Delta => [
            link::delta(failback),
            local::delta(failback),
            floor::delta(),
        ]
        .concat(),
        Case::Full => [link::full(failback), local::full(failback), floor::full()].concat(),
        Case::Vhdx => local::vhdx(failback),
    };
    for options in &arguments.extra {
        let options: Vec<&str> = options.split_whitespace().collect();
        all.push(link::failback(failback, &options));
    }
    let named = |list: &[String], name: &str| list.iter().any(|part| name.contains(part.as_str()));
    all.retain(|contender| {
        let is_wanted = arguments.only.is_empty() || named(&arguments.only, &contender.name);
        is_wanted && !named(&arguments.without, &contender.name)
    });
    all.retain(|contender| {
        let missing = contender.tools.iter().find(|tool| !machine::has(tool));
        if let Some(tool) = missing {
            println!("skipped: {}: no {tool} here", contender.name);
        }
        missing.is_none()
    });
    all
}

fn compare(
    arguments: &Arguments,
    place: &Place,
    cache: Cache,
    contenders: &[Contender],
    table: &mut Table,
) -> std::io::Result<()> {
    println!("{} {} %, {cache:?} cache", place.layout, place.percent);
    // In another order each time: what one leaves (in memory, on the disk) must not always meet
    // the same next one.
    let mut draws = SmallRng::seed_from_u64(7);
    let mut order: Vec<&Contender> = contenders.iter().collect();
    for round in 0..arguments.rounds {
        order.shuffle(&mut draws);
        for contender in &order {
            place.reset(arguments.case, contender.reads)?;
            let ballast = Ballast::new(&place.dir, arguments.ballast() << 10)?;
            place.bring(cache, arguments.case)?;
            let busy = machine::settle(arguments.wait_idle);
            ballast.let_go()?;
            let outcome = contender.measure(place)?;
            place.check(arguments.case)?;
            let row = Row {
                case: format!("{:?}", arguments.case).to_lowercase(),
                size_gib: arguments.size,
                percent: place.percent.clone(),
                layout: place.layout.to_string(),
                cache: format!("{cache:?}").to_lowercase(),
                round: round + 1,
                contender: contender.name.clone(),
                busy,
                outcome,
            };
            row.print();
            table.push(row);
        }
    }
    place.clean()?;
    table.summarise();
    Ok(())
}

/// What one run gave.
type Run = std::io::Result<Outcome>;
