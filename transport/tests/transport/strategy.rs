//! Every message that the protocol allows, for property tests.

use bytes::Bytes;
use failback_transport::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// Payloads stay short of their limits here: their content is opaque to the codec.
const PIECES: usize = 64;

pub(crate) fn message() -> BoxedStrategy<Message> {
    prop_oneof![
        control(),
        Just(Message::KeepAlive),
        Just(Message::Bye),
        Just(Message::Joined),
        any::<[u8; 16]>().prop_map(|token| Message::Join {
            token: Digest::from(token)
        }),
        hashes(),
        range().prop_map(|(first_block, count)| Message::ZeroBlocks { first_block, count }),
        range().prop_map(|(first_block, count)| Message::Zero { first_block, count }),
        (0..=BLOCK_COUNT_MAX).prop_map(|block_count| Message::ScanEnd { block_count }),
        (0..=BLOCK_COUNT_MAX).prop_map(|up_to_block| Message::Compared { up_to_block }),
        (block(), sub_hashes()).prop_map(|(block, (pieces, payload))| Message::SubHashes {
            block,
            pieces,
            payload,
        }),
        block().prop_map(|block| Message::Resend { block }),
        nodes(),
        (0..=BLOCK_COUNT_MAX).prop_map(|up_to_block| Message::Settled { up_to_block }),
        descend(),
        (
            block(),
            any::<bool>(),
            prop_oneof![Just(Bytes::new()), payload(PIECE_ID_LEN as usize)]
        )
            .prop_map(|(block, asks, payload)| Message::Want {
                block,
                asks: asks || !payload.is_empty(),
                payload,
            }),
        (block(), any::<bool>()).prop_map(|(first_block, sends_whole)| Message::Replan {
            first_block,
            sends_whole,
        }),
        block_data().prop_map(Message::Data),
        result(),
        end(),
        planning(),
        control_link(),
    ]
    .boxed()
}

/// Sums of sub-blocks, and a set of as many pieces as these fill.
fn sub_hashes() -> BoxedStrategy<(u64, Bytes)> {
    let in_piece = (PIECE_LEN / SUB_BLOCK_LEN) as usize;
    payload(SUB_HASH_LEN as usize)
        .prop_map(move |payload| {
            let pieces = (payload.len() / SUB_HASH_LEN as usize).div_ceil(in_piece);
            (u64::MAX >> (64 - pieces), payload)
        })
        .boxed()
}

fn control() -> BoxedStrategy<Message> {
    let sector = || select(vec![0_u32, 512, 4096]);
    let hello = (
        1..=u16::MAX,
        any::<u16>(),
        any::<u64>(),
        text(0, NAME_LEN_MAX),
    )
        .prop_map(|(version_min, more, features, software)| {
            let version_max = version_min.saturating_add(more);
            Message::Hello(Hello {
                version_min,
                version_max,
                features,
                software,
            })
        });
    let new_disk = (0..=DISK_SIZE_MAX, sector(), option::of(0..=28_u32)).prop_map(
        |(size, logical_sector_size, shift)| {
            let block_size_hint = shift.map_or(0, |shift| 1 << shift);
            NewDisk {
                size,
                logical_sector_size,
                block_size_hint,
            }
        },
    );
    let access = select(vec![Access::Read, Access::Write, Access::Plan]);
    let open = (
        text(1, NAME_LEN_MAX),
        access,
        option::of(new_disk),
        option::of(map_wish()),
        option::of((1..=8_u8, any::<[u8; 16]>())),
    )
        .prop_map(|(name, access, create, map, links)| {
            Message::Open(OpenRequest {
                name,
                access,
                create,
                map,
                links: links.map(|(count, token)| LinkGroup {
                    count,
                    token: Digest::from(token),
                }),
            })
        });
    let sizes = (
        (0..=DISK_SIZE_MAX, sector()),
        any::<bool>(),
        any::<u64>(),
        map_state(),
    );
    let opened = (text(0, NAME_LEN_MAX), text(0, TEXT_LEN_MAX), sizes).prop_map(
        |(format, identity, (sizes, is_new, allocated_bytes, map))| {
            let (virtual_size, logical_sector_size) = sizes;
            Message::Opened(DiskInfo {
                format,
                virtual_size,
                logical_sector_size,
                identity,
                is_new,
                is_partial: !is_new,
                allocated_bytes,
                map,
            })
        },
    );
    let failure = (
        any::<u16>(),
        text(0, TEXT_LEN_MAX),
        text(0, TEXT_LEN_MAX),
        option::of(any::<u64>()),
    )
        .prop_map(|(kind, message, path, offset)| {
            Message::Failure(Failure {
                kind,
                message,
                path,
                offset,
            })
        });
    prop_oneof![hello, open, opened, failure, start()].boxed()
}

fn map_wish() -> BoxedStrategy<MapWish> {
    let hash = select(vec![HashKind::Blake3, HashKind::Xxh3]);
    (hash, 16..=22_u32, any::<bool>(), any::<bool>())
        .prop_map(|(hash, shift, trust, full_audit)| MapWish {
            hash,
            block_size: 1 << shift,
            trust,
            full_audit,
        })
        .boxed()
}

fn map_state() -> BoxedStrategy<MapState> {
    let counts = any::<[u64; 2]>();
    (option::of(digest()), option::of(any::<u8>()), counts)
        .prop_map(|(root, refusal, counts)| MapState {
            root,
            refusal,
            audited_blocks: counts[0],
            data_blocks: counts[1],
            is_settled: counts[1] % 2 == 1,
        })
        .boxed()
}

const CONTAINERS: [Option<Container>; 5] = [
    None,
    Some(Container::Log),
    Some(Container::File),
    Some(Container::Clone),
    Some(Container::Child),
];

fn start() -> BoxedStrategy<Message> {
    let task = select(vec![Task::Delta, Task::Full, Task::Compare, Task::Map]);
    let hash = select(vec![HashKind::Blake3, HashKind::Xxh3]);
    let verify = select(vec![
        VerifyLevel::Full,
        VerifyLevel::Changed,
        VerifyLevel::Off,
    ]);
    let level = (ZSTD_LEVEL_MIN..=ZSTD_LEVEL_MAX).prop_map(Compress::Zstd);
    let compress = prop_oneof![Just(Compress::Off), Just(Compress::Auto), level];
    let role = select(vec![Role::Source, Role::Target]);
    let apply = select(vec![
        Apply::InPlace,
        Apply::Stage,
        Apply::StageKeepUndo,
        Apply::StageNoUndo,
    ]);
    (
        task,
        hash,
        16..=22_u32,
        verify,
        compress,
        any::<u64>(),
        role,
        apply,
    )
        .prop_map(
            |(task, hash, shift, verify, compress, sub_hash_seed, peer_role, apply)| {
                let block_size = 1 << shift;
                Message::Start(SessionParams {
                    task,
                    hash,
                    block_size,
                    verify,
                    compress,
                    sub_hash_seed,
                    peer_role,
                    apply,
                    container: CONTAINERS[usize::from(sub_hash_seed.to_le_bytes()[0]) % 5],
                    goes_on: sub_hash_seed % 2 == 1,
                    source_mark: sub_hash_seed.rotate_left(7),
                    target_root: (sub_hash_seed % 3 == 1)
                        .then(|| Digest::from([sub_hash_seed.to_le_bytes()[2]; 32])),
                    may_send_whole: sub_hash_seed % 5 < 2,
                })
            },
        )
        .boxed()
}

fn planning() -> BoxedStrategy<Message> {
    let picks = || {
        (0..=SAMPLE_PIECE_COUNT_MAX, 0..=SAMPLE_SPAN_COUNT_MAX).prop_map(
            |(piece_count, span_count)| {
                let count = usize::from(piece_count) + usize::from(span_count);
                Positions {
                    piece_count,
                    span_count,
                    payload: crate::kit::numbered(count * POSITION_LEN),
                }
            },
        )
    };
    let seen = any::<[u64; 4]>().prop_map(|[log, write, scattered_write, read_back]| SeenRates {
        log,
        write,
        scattered_write,
        read_back,
    });
    let surveyed = (0..=DISK_SIZE_MAX, any::<bool>(), 0..5_usize, seen, picks()).prop_map(
        |(allocated_bytes, is_whole, container, seen, picks)| {
            Message::Surveyed(Surveyed {
                allocated_bytes,
                is_whole,
                delta_container: CONTAINERS[container],
                full_container: CONTAINERS[4 - container],
                seen,
                picks,
            })
        },
    );
    let hash = select(vec![HashKind::Blake3, HashKind::Xxh3]);
    let level = option::of(ZSTD_LEVEL_MIN..=ZSTD_LEVEL_MAX);
    let sample = (hash, level, picks()).prop_map(|(hash, zstd_level, picks)| {
        Message::Sample(SampleWish {
            hash,
            zstd_level,
            picks,
        })
    });
    let sampled = (any::<[u64; 5]>(), picks()).prop_map(|(counts, picks)| {
        let pieces = usize::from(picks.piece_count) * PIECE_SUMS_LEN;
        let spans = usize::from(picks.span_count) * SPAN_SUM_LEN;
        Message::Sampled(Sampled {
            scanned_bytes: counts[0],
            scan_micros: counts[1],
            pack_raw_bytes: counts[2],
            packed_bytes: counts[3],
            pack_micros: counts[4],
            piece_count: picks.piece_count,
            span_count: picks.span_count,
            payload: crate::kit::numbered(pieces + spans),
        })
    });
    let probe = (0..=PROBE_LEN_MAX, 0..PIECES).prop_map(|(reply_len, len)| {
        Message::Probe(Probe {
            reply_len,
            payload: crate::kit::numbered(len),
        })
    });
    let survey = any::<u64>().prop_map(|seed| Message::Survey(SurveyWish { seed }));
    prop_oneof![survey, surveyed, sample, sampled, probe].boxed()
}

fn control_link() -> BoxedStrategy<Message> {
    let name = || text(1, CONTROL_NAME_LEN_MAX);
    let side = || option::of(name());
    let control = (
        text(1, NAME_LEN_MAX),
        name(),
        any::<u64>(),
        any::<[u8; 16]>(),
    )
        .prop_map(|(name, job, epoch, token)| {
            let token = Digest::from(token);
            Message::Control(ControlRequest {
                name,
                job,
                epoch,
                token,
            })
        });
    let disks = || vec(name(), 0..=usize::from(CONTROL_DISK_COUNT_MAX));
    let controlled = (name(), any::<u64>(), side(), any::<bool>(), disks()).prop_map(
        |(side, epoch, authority, is_tracked, disks)| {
            Message::Controlled(ControlInfo {
                side,
                epoch,
                authority,
                is_tracked,
                disks,
            })
        },
    );
    let root = || any::<[u8; 32]>().prop_map(Digest::from);
    let task = prop_oneof![
        select(vec![
            ControlTask::Power,
            ControlTask::PowerOff,
            ControlTask::Delete
        ]),
        (0..=CONTROL_LIMIT_MS_MAX).prop_map(|limit_ms| ControlTask::ShutDown { limit_ms }),
        any::<u64>().prop_map(|epoch| ControlTask::Start { epoch }),
        (name(), name()).prop_map(|(disk, snapshot)| ControlTask::Snapshot { disk, snapshot }),
        (name(), name()).prop_map(|(disk, snapshot)| ControlTask::Release { disk, snapshot }),
        name().prop_map(|disk| ControlTask::List { disk }),
        name().prop_map(|disk| ControlTask::ProveQuiet { disk }),
        (any::<u64>(), side())
            .prop_map(|(epoch, authority)| ControlTask::Advance { epoch, authority }),
        (name(), name(), side(), root()).prop_map(|(disk, since, now, root)| ControlTask::Hint {
            disk,
            since,
            now,
            root,
        }),
        (name(), root()).prop_map(|(disk, root)| ControlTask::HoldAgainst { disk, root }),
        name().prop_map(|disk| ControlTask::ForgetMaps { disk }),
        name().prop_map(|disk| ControlTask::DeleteDisk { disk }),
        (name(), root(), text(1, NAME_LEN_MAX)).prop_map(|(disk, root, identity)| {
            ControlTask::KeepMap {
                disk,
                root,
                identity,
            }
        }),
    ];
    let ask = (name(), task).prop_map(|(step, what)| Message::Ask(ControlAsk { step, what }));
    let told = prop_oneof![
        Just(ControlAnswer::Done),
        select(vec![ControlPower::On, ControlPower::Off]).prop_map(ControlAnswer::Power),
        text(1, NAME_LEN_MAX).prop_map(|name| ControlAnswer::Granted { name }),
        vec(name(), 0..=usize::from(CONTROL_SNAPSHOT_COUNT_MAX))
            .prop_map(|names| ControlAnswer::Snapshots { names }),
        text(0, TEXT_LEN_MAX).prop_map(|text| ControlAnswer::Identity { text }),
        (root(), any::<u64>()).prop_map(|(root, read)| ControlAnswer::Hinted { root, read }),
        name().prop_map(|why| ControlAnswer::Unhinted { why }),
        (
            any::<u64>(),
            any::<bool>(),
            any::<u64>(),
            vec(any::<u64>(), 0..=usize::from(CONTROL_BLOCK_COUNT_MAX)),
        )
            .prop_map(|(read, is_equal, differing, first)| ControlAnswer::Held {
                read,
                is_equal,
                differing,
                first,
            }),
    ];
    prop_oneof![control, controlled, ask, told.prop_map(Message::Told)].boxed()
}

fn hashes() -> BoxedStrategy<Message> {
    let last = BLOCK_COUNT_MAX - PIECES as u64;
    (0..=last, select(vec![16_u8, 32]))
        .prop_flat_map(|(first_block, hash_len)| {
            payload(usize::from(hash_len)).prop_map(move |payload| Message::Hashes {
                first_block,
                hash_len,
                payload,
            })
        })
        .boxed()
}

fn nodes() -> BoxedStrategy<Message> {
    let place = (0..=TREE_LEVEL_MAX, 0..BLOCK_COUNT_MAX);
    let hashes =
        select(vec![16_u8, 32]).prop_flat_map(|len| (Just(len), payload(usize::from(len))));
    (place, hashes)
        .prop_map(|((level, first), (hash_len, payload))| Message::Nodes {
            level,
            first: first >> level,
            hash_len,
            payload,
        })
        .boxed()
}

fn descend() -> BoxedStrategy<Message> {
    let indices = prop::collection::btree_set(0..BLOCK_COUNT_MAX, 1..=PIECES);
    (0..=TREE_LEVEL_MAX, 0..=DESCENT_DEPTH_MAX, indices)
        .prop_map(|(level, down, indices)| {
            let indices = indices.into_iter().map(|index| index >> level);
            let indices: std::collections::BTreeSet<u64> = indices.collect();
            let indices = indices.into_iter();
            let bytes = indices.flat_map(|index| u32::try_from(index).unwrap().to_le_bytes());
            Message::Descend {
                level,
                down: down.min(level),
                payload: bytes.collect(),
            }
        })
        .boxed()
}

fn block_data() -> BoxedStrategy<BlockData> {
    let kind = || select(vec![RunKind::Data, RunKind::Zero]);
    let runs = vec((0..4_u16, 1..4_u16, kind()), 1..8).prop_map(|gaps| {
        let mut next = 0;
        gaps.into_iter()
            .map(|(gap, count, kind)| {
                let first = next + gap;
                next = first + count;
                SubRun { first, count, kind }
            })
            .collect::<Vec<_>>()
    });
    let base = select(vec![Base::Old, Base::Zero]);
    (
        block(),
        base,
        digest(),
        any::<bool>(),
        runs,
        0..SUB_BLOCK_LEN,
    )
        .prop_map(|(block, base, new_hash, packed, runs, cut)| {
            let is_data = |run: &&SubRun| run.kind == RunKind::Data;
            let sub_blocks: u32 = runs
                .iter()
                .filter(is_data)
                .map(|run| u32::from(run.count))
                .sum();
            let cut = runs.last().filter(is_data).map_or(0, |_| cut);
            let raw_len = sub_blocks * SUB_BLOCK_LEN - cut;
            let packed = packed && raw_len > 1;
            let encoding = if packed {
                Encoding::Zstd
            } else {
                Encoding::Raw
            };
            let payload_len = if packed { raw_len / 2 } else { raw_len };
            let payload = crate::kit::numbered(payload_len as usize);
            BlockData {
                block,
                base,
                new_hash,
                encoding,
                raw_len,
                runs,
                payload,
            }
        })
        .boxed()
}

fn result() -> BoxedStrategy<Message> {
    let from = vec![
        VerifiedFrom::None,
        VerifiedFrom::Medium,
        VerifiedFrom::Cache,
        VerifiedFrom::Server,
    ];
    (
        option::of(digest()),
        any::<bool>(),
        any::<[u64; 8]>(),
        select(from),
    )
        .prop_map(|(root, equal, counts, verified_from)| {
            Message::Result(TargetResult {
                root,
                equal,
                target_read: counts[0],
                written: counts[1],
                verified: counts[2],
                zeroed_blocks: counts[3],
                hashed_blocks: counts[4],
                skipped_blocks: counts[5],
                differing_blocks: counts[6],
                verified_from,
                verify_micros: counts[7],
                resumed_blocks: counts[6].rotate_left(3),
                resume_notes: counts[5].to_le_bytes()[0],
                container: CONTAINERS[usize::from(counts[5].to_le_bytes()[1]) % 5],
                vouched_bytes: counts[4].rotate_left(5),
            })
        })
        .boxed()
}

fn end() -> BoxedStrategy<Message> {
    (option::of(digest()), any::<[u64; 11]>())
        .prop_map(|(root, counts)| {
            Message::End(SourceEnd {
                root,
                source_read: counts[0],
                hashed_blocks: counts[1],
                skipped_blocks: counts[2],
                differing_blocks: counts[3],
                zeroed_blocks: counts[4],
                changed_bytes: counts[5],
                raw_bytes: counts[6],
                sent_bytes: counts[7],
                vouched_bytes: counts[6].rotate_left(9),
                replans: counts[8],
                whole_regions: counts[9],
                whole_bytes: counts[10],
            })
        })
        .boxed()
}

fn digest() -> BoxedStrategy<Digest> {
    let short = any::<[u8; 16]>().prop_map(Digest::from);
    prop_oneof![any::<[u8; 32]>().prop_map(Digest::from), short].boxed()
}

fn block() -> BoxedStrategy<u64> {
    (0..BLOCK_COUNT_MAX).boxed()
}

fn range() -> BoxedStrategy<(u64, u64)> {
    block()
        .prop_flat_map(|first| (Just(first), 1..=BLOCK_COUNT_MAX - first))
        .boxed()
}

fn payload(piece_len: usize) -> BoxedStrategy<Bytes> {
    (1..=PIECES)
        .prop_flat_map(move |count| vec(any::<u8>(), count * piece_len))
        .prop_map(Bytes::from)
        .boxed()
}

/// Text of any letters, `min` to `max` bytes long.
fn text(min: usize, max: usize) -> BoxedStrategy<String> {
    vec(
        select(vec!['a', '/', ' ', '\u{e9}', '\u{2603}', '\u{0}']),
        min..=max / 3,
    )
    .prop_map(|letters| letters.into_iter().collect())
    .boxed()
}
