//! What an agent tells a client that plans: between `Opened` and `Start`, and only so much of it.

use failback_transport as wire;
use failback_transport::{Message, SampleWish};

use super::visit::{ZSTD_LEVEL_MAX, hash_kind, out_of_place};
use crate::disk::Source;
use crate::error::Result;
use crate::hash::Hasher;
use crate::operation::Prospect;
use crate::plan::{Patience, Picks, Survey, SurveyTask, probe_payload, read_sample, survey};
use crate::sync::scan_threads;
use crate::units::BlockSize;

/// Surveys for each connection, and samples: one to plan, one more if a map turns out to lie.
const ASKED_MAX: u32 = 2;
/// Probes for each connection.
const PROBE_COUNT_MAX: u32 = 64;
/// Bytes of probes for each connection, both ways together.
const PROBE_LEN_MAX: u64 = 32 << 20;

/// How much of it a client has left.
#[derive(Debug)]
pub(super) struct Planning {
    surveys: u32,
    samples: u32,
    probes: u32,
    probe_len: u64,
}

/// The disk that is asked about.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// `None`: it does not exist yet.
    pub(super) disk: Option<&'a dyn Source>,
    /// What is likely of it as a target, for whoever asks: it takes a look at files.
    pub(super) likely: &'a dyn Fn() -> Prospect,
}

impl Planning {
    pub(super) fn new() -> Self {
        Self {
            surveys: ASKED_MAX,
            samples: ASKED_MAX,
            probes: PROBE_COUNT_MAX,
            probe_len: PROBE_LEN_MAX,
        }
    }

    /// The answer; `None` for a message that is no question of planning.
    ///
    /// # Errors
    /// `Protocol` for too many of them; those of the disk.
    pub(super) fn answer(
        &mut self,
        question: &Message,
        asked: &Asked<'_>,
    ) -> Result<Option<Message>> {
        Ok(Some(match question {
            Message::Survey(wish) => {
                take(&mut self.surveys)?;
                let found = match asked.disk {
                    Some(disk) => survey(disk, wish.seed)?,
                    None => Survey {
                        is_whole: true,
                        ..Survey::default()
                    },
                };
                let likely = (asked.likely)();
                Message::Surveyed(wire::Surveyed {
                    allocated_bytes: found.allocated,
                    is_whole: found.is_whole,
                    delta_container: likely.delta,
                    full_container: likely.full,
                    seen: likely.seen.to_wire(),
                    picks: found.picks.to_wire(),
                })
            }
            Message::Sample(wish) => {
                take(&mut self.samples)?;
                Message::Sampled(sample(wish, asked)?)
            }
            Message::Probe(probe) => {
                take(&mut self.probes)?;
                let len = u64::from(probe.reply_len) + probe.payload.len() as u64;
                let left = self.probe_len.checked_sub(len);
                self.probe_len = left.ok_or_else(out_of_place)?;
                Message::Probe(wire::Probe {
                    reply_len: 0,
                    payload: probe_payload(probe.reply_len),
                })
            }
            _ => return Ok(None),
        }))
    }
}

fn take(left: &mut u32) -> Result<()> {
    *left = left.checked_sub(1).ok_or_else(out_of_place)?;
    Ok(())
}

fn sample(wish: &SampleWish, asked: &Asked<'_>) -> Result<wire::Sampled> {
    let Some(disk) = asked.disk else {
        return Ok(wire::Sampled::default());
    };
    let task = SurveyTask {
        hasher: &Hasher::new(hash_kind(wish.hash)),
        level: wish.zstd_level.map(|level| level.clamp(1, ZSTD_LEVEL_MAX)),
        threads: scan_threads(BlockSize::DEFAULT),
        patience: Patience::default(),
    };
    Ok(read_sample(disk, &Picks::from_wire(&wish.picks), &task)?.to_wire())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::disk::MemoryDisk;
    use crate::error::ErrorKind;

    // Goal: no client keeps an agent reading or sending without a session. Method: one question
    // more than allowed, of each kind.
    #[test]
    fn questions_are_counted() {
        let disk = MemoryDisk::new(vec![1; 1 << 20]);
        let asked = Asked {
            disk: Some(&disk),
            likely: &Prospect::default,
        };
        let probe = |reply_len| {
            Message::Probe(wire::Probe {
                reply_len,
                payload: Bytes::new(),
            })
        };
        let sample = Message::Sample(SampleWish {
            hash: wire::HashKind::Blake3,
            zstd_level: Some(19),
            picks: wire::Positions::default(),
        });
        let survey = Message::Survey(wire::SurveyWish { seed: 1 });
        let table = [
            (survey, 2),
            (sample, 2),
            (probe(0), 64),
            (probe(1 << 20), 32),
        ];
        for (question, allowed) in table {
            let mut planning = Planning::new();
            for _ in 0..allowed {
                assert!(planning.answer(&question, &asked).unwrap().is_some());
            }
            let refused = planning.answer(&question, &asked).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Protocol);
        }
        let other = Planning::new().answer(&Message::Bye, &asked);
        assert_eq!(other.unwrap(), None);
    }

    // Goal: a disk that is not there yet has nothing. Method: ask about it.
    #[test]
    fn a_missing_disk_is_empty() {
        let asked = Asked {
            disk: None,
            likely: &Prospect::default,
        };
        let survey = Message::Survey(wire::SurveyWish { seed: 1 });
        let Some(Message::Surveyed(found)) = Planning::new().answer(&survey, &asked).unwrap()
        else {
            panic!("no answer");
        };
        assert_eq!((found.allocated_bytes, found.is_whole), (0, true));
    }
}
