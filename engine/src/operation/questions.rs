//! What a client asks an agent before it chooses: what is allocated, what some of it holds, how
//! fast the link is.

use std::time::{Duration, Instant};

use failback_transport as wire;
use failback_transport::link::IDLE_LIMIT;
use failback_transport::{Message, PROBE_LEN_MAX, Probe, SampleWish, SurveyWish};

use super::connection::Connection;
use super::planned::Prospect;
use crate::error::{Error, ErrorKind, Result};
use crate::hash::HashKind;
use crate::plan::{LinkFacts, Picks, Reading, SeenRates, Survey, probe_payload};

/// Bytes of the first probe.
const PROBE_LEN_MIN: u32 = 16 << 10;
/// A probe that took so long beyond the round trip tells the rate; a longer one would clog a slow
/// link.
const PROBE_TIME: Duration = Duration::from_millis(25);
/// Empty probes; the fastest is the round trip.
const PINGS: usize = 2;

/// Which way data will go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heading {
    /// The agent has the target.
    ToAgent,
    /// The agent has the source.
    FromAgent,
}

/// What an agent says of its disk, and of that as a target.
pub(super) type AgentSurvey = (Survey, Prospect);

impl Connection {
    /// What is allocated, and a sample of it.
    ///
    /// # Errors
    /// Those of the agent, `PeerGone`, `Protocol`.
    pub(super) fn survey(&mut self, seed: u64) -> Result<AgentSurvey> {
        match self.ask(&Message::Survey(SurveyWish { seed }), IDLE_LIMIT)? {
            Message::Surveyed(found) => Ok((
                Survey::from_wire(&found),
                Prospect {
                    delta: found.delta_container,
                    full: found.full_container,
                    seen: SeenRates::from_wire(&found.seen),
                },
            )),
            _ => Err(out_of_place()),
        }
    }

    /// What is in a sample.
    ///
    /// # Errors
    /// As [`Connection::survey`].
    pub(super) fn sample(
        &mut self,
        picks: &Picks,
        hash: HashKind,
        level: Option<i8>,
    ) -> Result<Reading> {
        let wish = SampleWish {
            hash: match hash {
                HashKind::Blake3 => wire::HashKind::Blake3,
                HashKind::Xxh3 => wire::HashKind::Xxh3,
            },
            zstd_level: level,
            picks: picks.to_wire(),
        };
        match self.ask(&Message::Sample(wish), IDLE_LIMIT)? {
            Message::Sampled(found) => Reading::from_wire(&found, picks),
            _ => Err(out_of_place()),
        }
    }

    /// Measures the link, by probes of at most `len_max` bytes each.
    ///
    /// # Errors
    /// As [`Connection::survey`].
    pub(super) fn probe(&mut self, heading: Heading, len_max: u64) -> Result<LinkFacts> {
        let len_max = u32::try_from(len_max).map_or(PROBE_LEN_MAX, |max| max.min(PROBE_LEN_MAX));
        let len_max = len_max.max(PROBE_LEN_MIN);
        let mut round_trip = Duration::MAX;
        for _ in 0..PINGS {
            round_trip = round_trip.min(self.time_probe(heading, 0)?);
        }
        // What a link lets pass at once (a burst, buffers on the way) is in all times alike: the
        // rate is what a longer probe took longer.
        let (mut shorter, mut len) = ((0, round_trip), PROBE_LEN_MIN);
        loop {
            let mut took = self.time_probe(heading, len)?;
            if took.saturating_sub(round_trip) >= PROBE_TIME {
                // Once more: what held this one up need not be the link.
                took = took.min(self.time_probe(heading, len)?);
            }
            let beyond = took.saturating_sub(round_trip);
            if beyond >= PROBE_TIME || len >= len_max {
                // That of the shorter one, too.
                let before = match shorter.0 {
                    0 => round_trip,
                    len => shorter.1.min(self.time_probe(heading, len)?),
                };
                // The clock is finer than that.
                let longer = took.saturating_sub(before).max(Duration::from_micros(1));
                return Ok(LinkFacts {
                    rate: f64::from(len - shorter.0) / longer.as_secs_f64(),
                    round_trip,
                });
            }
            shorter = (len, took);
            let growth = if beyond < PROBE_TIME / 8 { 4 } else { 2 };
            len = len.saturating_mul(growth).min(len_max);
        }
    }

    fn time_probe(&mut self, heading: Heading, len: u32) -> Result<Duration> {
        let (out, back) = match heading {
            Heading::ToAgent => (len, 0),
            Heading::FromAgent => (0, len),
        };
        let probe = Message::Probe(Probe {
            reply_len: back,
            payload: probe_payload(out),
        });
        let started = Instant::now();
        match self.ask(&probe, IDLE_LIMIT)? {
            Message::Probe(answer) if answer.payload.len() == back as usize => {
                Ok(started.elapsed())
            }
            _ => Err(out_of_place()),
        }
    }
}

fn out_of_place() -> Error {
    Error::new(ErrorKind::Protocol, "peer: a message out of place")
}
