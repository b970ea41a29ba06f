//! The choice between delta and full. Pure: looks at facts, does no I/O.

use std::time::Duration;

use failback_transport::Task;
use serde::{Deserialize, Serialize};

use super::cost::Cost;

/// What the operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The engine chooses.
    #[default]
    Auto,
    /// Compare, send what differs.
    Delta,
    /// Send everything, compare nothing.
    Full,
}

/// What the better strategy has less of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Seconds for which the machine that uses the source stands still.
    #[default]
    Downtime,
    /// Seconds from start to end.
    Time,
    /// Bytes on the link.
    Transfer,
}

/// What is asked of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Delta, full, or the better one.
    pub strategy: Strategy,
    /// Which is better.
    pub objective: Objective,
    /// Longest downtime; goes before the objective.
    pub downtime_budget: Option<Duration>,
}

/// What is known of the two disks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Known {
    /// There is no target yet.
    pub is_new: bool,
    /// A saved map of a side is believed.
    pub has_map: bool,
    /// Those of both sides are: a delta reads only what differs.
    pub are_both_mapped: bool,
    /// What each strategy would cost; `None` where nobody measured.
    pub costs: Option<Costs>,
}

/// What each strategy would cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Costs {
    /// A delta.
    pub delta: Cost,
    /// A full copy.
    pub full: Cost,
}

/// How a sync is done, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// [`Task::Delta`] or [`Task::Full`].
    pub task: Task,
    /// Reason codes.
    pub reasons: Vec<&'static str>,
    /// Share by which the choice is better than the other in what was asked for, below 0 where it
    /// is worse; `None` where nobody measured.
    pub margin: Option<f64>,
    /// The downtime of the choice is longer than its budget.
    pub misses_budget: bool,
}

impl Plan {
    /// The name of the choice in reports.
    #[must_use]
    pub fn strategy(&self) -> &'static str {
        match self.task {
            Task::Full => "full",
            _ => "delta",
        }
    }
}

impl Costs {
    /// Of one task.
    #[must_use]
    pub fn of(&self, task: Task) -> &Cost {
        match task {
            Task::Full => &self.full,
            _ => &self.delta,
        }
    }

    /// Whether a full copy has clearly less of what is asked for. A delta leaves alone what is
    /// equal, so that one has what is nearly equal.
    pub(crate) fn is_full_better(&self, objective: Objective) -> bool {
        measure(&self.full, objective) < measure(&self.delta, objective) * CLEARLY
    }

    fn margin(&self, task: Task, objective: Objective) -> f64 {
        let other = match task {
            Task::Full => Task::Delta,
            _ => Task::Full,
        };
        let [chosen, other] = [task, other].map(|task| measure(self.of(task), objective));
        match other > 0.0 {
            true => (other - chosen) / other,
            false => 0.0,
        }
    }
}

/// No estimate of this kind is closer than that.
const CLEARLY: f64 = 0.95;

/// Chooses.
#[must_use]
pub fn choose(wish: &Wish, known: &Known) -> Plan {
    let (task, reasons) = match (wish.strategy, known.costs) {
        (Strategy::Delta, _) => (Task::Delta, vec!["operator_forced"]),
        (Strategy::Full, _) => (Task::Full, vec!["operator_forced"]),
        (Strategy::Auto, _) if known.is_new => (Task::Full, vec![]),
        (Strategy::Auto, None) => (Task::Delta, base(known)),
        (Strategy::Auto, _) if known.are_both_mapped => (Task::Delta, base(known)),
        (Strategy::Auto, Some(costs)) => choose_by(&costs, wish, known),
    };
    let missing = known.is_new.then_some("target_missing");
    // A full copy reads all of the source whatever is known of it.
    let trusted = (known.has_map && task == Task::Delta).then_some("map_trusted");
    let cost = known.costs.map(|costs| *costs.of(task));
    Plan {
        task,
        reasons: missing.into_iter().chain(reasons).chain(trusted).collect(),
        margin: known.costs.map(|costs| costs.margin(task, wish.objective)),
        misses_budget: cost.is_some_and(|cost| !fits(&cost, wish)),
    }
}

fn choose_by(costs: &Costs, wish: &Wish, known: &Known) -> (Task, Vec<&'static str>) {
    let (better, other) = match costs.is_full_better(wish.objective) {
        true => (Task::Full, Task::Delta),
        false => (Task::Delta, Task::Full),
    };
    let is_over = !fits(costs.of(better), wish) && fits(costs.of(other), wish);
    let task = if is_over { other } else { better };
    let mut reasons = match task {
        Task::Full => vec![],
        _ => base(known),
    };
    reasons.push("sampled_change_rate");
    if is_over {
        reasons.push("downtime_budget");
    } else if task == Task::Full && wish.objective != Objective::Transfer {
        reasons.push("link_faster_than_scan");
    }
    (task, reasons)
}

fn base(known: &Known) -> Vec<&'static str> {
    match known.has_map {
        true => vec![],
        false => vec!["no_base_map"],
    }
}

fn fits(cost: &Cost, wish: &Wish) -> bool {
    let budget = wish.downtime_budget.map(|budget| budget.as_secs_f64());
    budget.is_none_or(|budget| cost.downtime <= budget)
}

fn measure(cost: &Cost, objective: Objective) -> f64 {
    match objective {
        Objective::Downtime => cost.downtime,
        Objective::Time => cost.seconds,
        // Within one process there is no link, and what would travel is what is copied.
        Objective::Transfer => super::number::float(cost.link_bytes.max(cost.bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(seconds: f64, bytes: u64, downtime: f64) -> Cost {
        Cost {
            seconds,
            bytes,
            link_bytes: bytes,
            downtime,
        }
    }

    fn planned(wish: Wish, costs: Costs) -> (&'static str, Vec<&'static str>, bool) {
        let known = Known {
            costs: Some(costs),
            ..Known::default()
        };
        let plan = choose(&wish, &known);
        (plan.strategy(), plan.reasons, plan.misses_budget)
    }

    // Goal: the choice without costs, and its reasons. Method: every case of the table.
    #[test]
    fn choices_without_costs() {
        let table: [(Strategy, bool, bool, &str, &[&str]); 7] = [
            (Strategy::Auto, true, false, "full", &["target_missing"]),
            (Strategy::Auto, false, false, "delta", &["no_base_map"]),
            (
                Strategy::Delta,
                true,
                false,
                "delta",
                &["target_missing", "operator_forced"],
            ),
            (Strategy::Full, false, false, "full", &["operator_forced"]),
            (Strategy::Auto, false, true, "delta", &["map_trusted"]),
            (
                Strategy::Delta,
                false,
                true,
                "delta",
                &["operator_forced", "map_trusted"],
            ),
            (Strategy::Full, false, true, "full", &["operator_forced"]),
        ];
        for (strategy, is_new, has_map, chosen, reasons) in table {
            let wish = Wish {
                strategy,
                ..Wish::default()
            };
            let known = Known {
                is_new,
                has_map,
                ..Known::default()
            };
            let plan = choose(&wish, &known);
            assert_eq!(
                (plan.strategy(), plan.reasons.as_slice()),
                (chosen, reasons)
            );
        }
    }

    // Goal: each objective has its winner. Method: a delta that is slower, shorter in downtime and
    // in bytes; then one that is worse in all.
    #[test]
    fn choices_by_objective() {
        let costs = Costs {
            delta: cost(30.0, 10, 5.0),
            full: cost(20.0, 100, 20.0),
        };
        let by = |objective| Wish {
            objective,
            ..Wish::default()
        };
        let delta = ("delta", vec!["no_base_map", "sampled_change_rate"], false);
        let full = vec!["sampled_change_rate", "link_faster_than_scan"];
        assert_eq!(planned(by(Objective::Downtime), costs), delta);
        assert_eq!(planned(by(Objective::Transfer), costs), delta);
        assert_eq!(planned(by(Objective::Time), costs), ("full", full, false));
        let nearly = Costs {
            delta: cost(21.0, 104, 20.5),
            ..costs
        };
        for objective in [Objective::Downtime, Objective::Time, Objective::Transfer] {
            assert_eq!(planned(by(objective), nearly), delta);
        }
        let bad = Costs {
            delta: cost(30.0, 110, 22.0),
            ..costs
        };
        assert_eq!(planned(by(Objective::Downtime), bad).0, "full");
        let by_bytes = planned(by(Objective::Transfer), bad);
        assert_eq!(by_bytes, ("full", vec!["sampled_change_rate"], false));
    }

    // Goal: two maps that are believed need no costs. Method: costs that speak for a full copy.
    #[test]
    fn two_maps_make_a_delta() {
        let wish = Wish {
            objective: Objective::Time,
            ..Wish::default()
        };
        let known = Known {
            has_map: true,
            are_both_mapped: true,
            costs: Some(Costs {
                delta: cost(30.0, 10, 5.0),
                full: cost(20.0, 100, 20.0),
            }),
            ..Known::default()
        };
        let plan = choose(&wish, &known);
        assert_eq!(
            (plan.strategy(), plan.reasons),
            ("delta", vec!["map_trusted"])
        );
    }

    // Goal: a budget goes before the objective, and one that nobody keeps is told and changes
    // nothing. Method: budgets above, between and below the two downtimes.
    #[test]
    fn a_budget_turns_the_choice_only_where_it_can_be_kept() {
        let costs = Costs {
            delta: cost(30.0, 10, 5.0),
            full: cost(20.0, 100, 20.0),
        };
        let within = |seconds| Wish {
            objective: Objective::Time,
            downtime_budget: Some(Duration::from_secs(seconds)),
            ..Wish::default()
        };
        let chosen = |seconds| {
            let (strategy, reasons, misses) = planned(within(seconds), costs);
            (strategy, reasons.contains(&"downtime_budget"), misses)
        };
        assert_eq!(chosen(20), ("full", false, false));
        assert_eq!(chosen(19), ("delta", true, false));
        assert_eq!(chosen(5), ("delta", true, false));
        assert_eq!(chosen(4), ("full", false, true));
    }

    // Goal: the margin is of the choice, also of one that was forced. Method: both ways.
    #[test]
    fn margins() {
        let costs = Costs {
            delta: cost(30.0, 10, 5.0),
            full: cost(20.0, 100, 20.0),
        };
        let margin = |strategy| {
            let wish = Wish {
                strategy,
                objective: Objective::Time,
                ..Wish::default()
            };
            let known = Known {
                costs: Some(costs),
                ..Known::default()
            };
            choose(&wish, &known).margin.unwrap()
        };
        assert!((margin(Strategy::Auto) - 1.0 / 3.0).abs() < 1e-9);
        assert!((margin(Strategy::Delta) + 0.5).abs() < 1e-9);
    }
}
