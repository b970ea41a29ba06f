//! The stage itself: an append-only file of records.

use std::ops::Range;
use std::sync::{Arc, OnceLock, PoisonError};

use failback_vhdx::FileAt;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::index::Index;
use super::record::{self, Bytes, HEADER_LEN, NewRecord, PAGE_LEN, Record};
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::{Mutex, MutexGuard};
use crate::state::{Barrier, Barriers, FlushWindow};
use crate::tree::Leaf;
use crate::units::{BlockIndex, Geometry};

/// See the module's head.
#[derive(Debug)]
pub(crate) struct StageLog {
    file: Arc<dyn FileAt>,
    job: Uuid,
    geometry: Geometry,
    barriers: Barriers,
    inner: Mutex<Inner>,
    window: FlushWindow,
    /// Kind and text of the first write that failed.
    poison: OnceLock<(ErrorKind, String)>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Where the next record goes.
    end: u64,
    /// Records so far.
    sequence: u64,
    /// Bytes from the start that are known to be durable.
    durable: u64,
    /// Bytes from the start that the window knows of.
    counted: u64,
    /// Records that were read again, from the medium, once they were durable; what an earlier run
    /// wrote is not among them.
    checked: Range<u64>,
    /// Whether something is behind the end that does not count, and must not come back.
    has_tail: bool,
    /// The record that counts, for each staged block.
    index: Index,
    headers: blake3::Hasher,
}

impl Inner {
    fn add(&mut self, record: &Record) {
        self.index.add(record);
        self.headers.update(&record.head_sum.to_le_bytes());
        self.end = record.end();
        self.sequence += 1;
    }
}

/// What a complete stage is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Bytes.
    pub(crate) len: u64,
    /// Records.
    pub(crate) records: u64,
    /// BLAKE3 over the sums of all headers.
    pub(crate) hash: String,
}

impl StageLog {
    /// An empty stage in an empty file.
    pub(crate) fn new(
        file: Arc<dyn FileAt>,
        job: Uuid,
        geometry: Geometry,
        barriers: Barriers,
    ) -> Self {
        Self {
            file,
            job,
            geometry,
            barriers,
            inner: Mutex::default(),
            // What was flushed is looked at again, so that a long window is one that is waited for.
            window: FlushWindow::new(barriers.window().at_first()),
            poison: OnceLock::new(),
        }
    }

    /// The stage in `file`: all records up to the first that does not check. Their bytes are looked
    /// at only where they may never have been durable. What is behind it was
    /// never durable, and is cut off before anything is added. Of a stage that was sealed only
    /// `sealed_len` bytes are looked at.
    ///
    /// # Errors
    /// `Damaged` when a record does not check that was durable once, `Io`.
    pub(crate) fn open(
        file: Arc<dyn FileAt>,
        job: Uuid,
        geometry: Geometry,
        barriers: Barriers,
        sealed_len: Option<u64>,
    ) -> Result<Self> {
        let stage = Self::new(file, job, geometry, barriers);
        stage.scan(sealed_len.unwrap_or(u64::MAX))?;
        Ok(stage)
    }

    fn scan(&self, len_max: u64) -> Result<()> {
        let file_len = self.file.len().map_err(|e| failed(e, "read stage"))?;
        let len = file_len.min(len_max);
        let durable = match len_max {
            // All of it was, when it was sealed.
            0..u64::MAX => len,
            u64::MAX => self.durable_len(len)?,
        };
        let mut inner = self.inner();
        while let Some(record) = self.parse_at(inner.end, len)? {
            let is_whole = record.end() <= durable || self.has_sound_bytes(&record)?;
            if record.sequence != inner.sequence || !is_whole {
                break;
            }
            inner.index.check_room(record.block)?;
            inner.add(&record);
        }
        // A record further on that was written when these bytes were durable: this is no torn end.
        let mut at = inner.end + PAGE_LEN;
        while at < len {
            let later = self.parse_at(at, len)?;
            if later.is_some_and(|later| later.durable > inner.end) {
                let message = "stage is damaged: a record does not check that was durable";
                return Err(Error::new(ErrorKind::Damaged, message).at(inner.end));
            }
            at += PAGE_LEN;
        }
        inner.has_tail = file_len > inner.end;
        inner.checked = inner.end..inner.end;
        Ok(())
    }

    /// Bytes that were durable when the last of the records was written whose headers check. Those
    /// were written whole; what has rotted since is found when it is used, and before SEAL. To read
    /// all of them here would keep the source waiting.
    fn durable_len(&self, len: u64) -> Result<u64> {
        let (mut end, mut sequence, mut durable) = (0, 0, 0);
        while let Some(record) = self.parse_at(end, len)?
            && record.sequence == sequence
        {
            durable = record.durable.max(durable);
            end = record.end();
            sequence += 1;
        }
        Ok(durable)
    }

    fn parse_at(&self, at: u64, len: u64) -> Result<Option<Record>> {
        let failed = |e| failed(e, "read stage").at(at);
        let mut head = [0; HEADER_LEN];
        if at.saturating_add(HEADER_LEN as u64) > len {
            return Ok(None);
        }
        self.file.read_at(at, &mut head).map_err(failed)?;
        let Some(runs_len) = record::runs_len(&head, self.job) else {
            return Ok(None);
        };
        let runs_at = at + HEADER_LEN as u64;
        if runs_at + runs_len as u64 > len {
            return Ok(None);
        }
        let mut runs = vec![0; runs_len];
        self.file.read_at(runs_at, &mut runs).map_err(failed)?;
        let record = record::parse(&head, &runs, at);
        Ok(record.filter(|record| record.end() <= len && self.fits(record)))
    }

    fn fits(&self, record: &Record) -> bool {
        let block_len = self.geometry.block_len(BlockIndex(record.block));
        let end = record.runs.last().map_or(0, |run| run.end);
        record.block < self.geometry.block_count().0 && end as usize <= block_len
    }

    fn has_sound_bytes(&self, record: &Record) -> Result<bool> {
        let new = self.read(record.new_at(), record.new_len)?;
        let old = self.read(record.old_at(), record.old_len)?;
        Ok(xxh3_64(&new) == record.new_sum && xxh3_64(&old) == record.old_sum)
    }

    fn read(&self, at: u64, len: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.file
            .read_at(at, &mut bytes)
            .map_err(|e| failed(e, "read stage").at(at))?;
        Ok(bytes)
    }

    // A panic while it is held leaves a record that is not in the index: it is not durable either.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first staged block from `block` on.
    pub(crate) fn next_from(&self, block: BlockIndex) -> Option<BlockIndex> {
        self.inner().index.next_from(block)
    }

    /// All staged blocks, ascending. They are looked up one by one: a list of them could be as
    /// large as the index.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = BlockIndex> {
        let mut from = BlockIndex(0);
        std::iter::from_fn(move || {
            let block = self.next_from(from)?;
            from = BlockIndex(block.0 + 1);
            Some(block)
        })
    }

    /// Staged blocks.
    pub(crate) fn count(&self) -> u64 {
        self.inner().index.count()
    }

    /// Whether the stage has no record that counts.
    pub(crate) fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// The record that counts for a block.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(crate) fn find(&self, block: BlockIndex) -> Result<Option<Record>> {
        let Some(at) = self.inner().index.find(block) else {
            return Ok(None);
        };
        match self.parse_at(at, u64::MAX)? {
            Some(record) if record.block == block.0 => Ok(Some(record)),
            _ => Err(damaged(at)),
        }
    }

    /// The bytes that the record's runs get, one after the other; empty when they become zeros.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(crate) fn new_bytes(&self, record: &Record) -> Result<Vec<u8>> {
        let bytes = self.read(record.new_at(), record.new_len)?;
        match xxh3_64(&bytes) == record.new_sum {
            true => Ok(bytes),
            false => Err(damaged(record.new_at())),
        }
    }

    /// The bytes that the record's runs had, one after the other; empty when they were zeros.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(crate) fn old_bytes(&self, record: &Record) -> Result<Vec<u8>> {
        let bytes = self.read(record.old_at(), record.old_len)?;
        match xxh3_64(&bytes) == record.old_sum {
            true => Ok(bytes),
            false => Err(damaged(record.old_at())),
        }
    }

    /// Adds what a block becomes. It replaces what was staged for the block. Whether there are
    /// records now that wait for [`StageLog::check_durable`].
    ///
    /// # Errors
    /// `Refused` when more blocks are staged than the index holds; `NoSpace`, `Io`; after that
    /// every further call fails.
    pub(crate) fn put(
        &self,
        block: BlockIndex,
        runs: &[Range<u32>],
        new: Option<&[u8]>,
        old: Old<'_>,
        leaves: (Option<Leaf>, Option<Leaf>),
    ) -> Result<bool> {
        self.append(&NewRecord {
            block: block.0,
            is_drop: false,
            runs,
            new: new.map_or(Bytes::Zero, Bytes::Kept),
            old: match old {
                Old::Zero => Bytes::Zero,
                Old::Kept(bytes) => Bytes::Kept(bytes),
                Old::NotKept => Bytes::Unknown,
            },
            new_leaf: leaves.0,
            old_leaf: leaves.1,
        })
    }

    /// The block has its old content again. As [`StageLog::put`].
    ///
    /// # Errors
    /// As [`StageLog::put`].
    pub(crate) fn drop_block(&self, block: BlockIndex) -> Result<bool> {
        self.append(&NewRecord {
            block: block.0,
            is_drop: true,
            runs: &[],
            new: Bytes::Unknown,
            old: Bytes::Unknown,
            new_leaf: None,
            old_leaf: None,
        })
    }

    pub(super) fn append(&self, new: &NewRecord<'_>) -> Result<bool> {
        self.check_poison()?;
        let added = {
            let mut inner = self.inner();
            inner.index.check_room(new.block)?;
            self.cut_tail(&mut inner)?;
            let (record, bytes) = new.encode(self.job, inner.sequence, inner.durable, inner.end);
            let written = self.file.write_at(inner.end, &bytes);
            written.map_err(|e| self.poisoned(e, "write stage").at(inner.end))?;
            inner.add(&record);
            // What an earlier run left may never have been flushed: it counts with the first one.
            let end = inner.end;
            end - std::mem::replace(&mut inner.counted, end)
        };
        let mut has_flushed = false;
        self.window.add(added, || {
            has_flushed = true;
            self.flush(Barrier::Window)
        })?;
        Ok(has_flushed)
    }

    /// A record of an earlier run that is as long as the one that is written now would go on with
    /// it. No barrier: until the next flush such a record is only one more that is compared, and
    /// that flush makes the new length durable before SEAL.
    fn cut_tail(&self, inner: &mut Inner) -> Result<()> {
        if inner.has_tail {
            let cut = self.file.set_len(inner.end);
            cut.map_err(|e| self.poisoned(e, "cut stage"))?;
            inner.has_tail = false;
        }
        Ok(())
    }

    /// Waits until everything that was added is durable.
    ///
    /// # Errors
    /// `NoSpace`, `Io`; after that every further call fails.
    pub(crate) fn flush(&self, barrier: Barrier) -> Result<()> {
        self.check_poison()?;
        let end = self.inner().end;
        let file = self.file.as_ref();
        let flushed = self.barriers.pass(barrier, || file.sync());
        flushed.map_err(|e| self.poisoned(e, "flush stage"))?;
        let mut inner = self.inner();
        inner.durable = inner.durable.max(end);
        Ok(())
    }

    /// Bytes from the start that are known to be durable.
    pub(crate) fn durable(&self) -> u64 {
        self.inner().durable
    }

    /// Bytes from the start of the stage that [`StageLog::check_durable`] has read: what is in
    /// memory of them came from the medium.
    pub(crate) fn checked_len(&self) -> u64 {
        let checked = self.inner().checked.clone();
        if checked.start == 0 { checked.end } else { 0 }
    }

    /// Reads the records once more that lie before `durable` and were not read so before, and holds
    /// them against their sums: beside the comparison, so that only the last window is left to do
    /// before SEAL. The caller has seen to it that they come from the medium: what is durable only
    /// since then may still come from memory, and is left for the next call.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(crate) fn check_durable(&self, durable: u64) -> Result<()> {
        let (mut at, end) = {
            let mut inner = self.inner();
            let from = inner.checked.end;
            // Of two threads each has its own part. One that fails ends the job.
            inner.checked.end = durable.max(from);
            (from, inner.checked.end)
        };
        while at < end {
            let record = self.parse_at(at, end)?.ok_or_else(|| damaged(at))?;
            if !self.has_sound_bytes(&record)? {
                return Err(damaged(at));
            }
            at = record.end();
        }
        Ok(())
    }

    /// Reads the record that counts for a block once more and holds it against its sums, unless
    /// [`StageLog::check_durable`] has.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(crate) fn check_block(&self, block: BlockIndex) -> Result<()> {
        let is_checked = {
            let inner = self.inner();
            let at = inner.index.find(block);
            at.is_some_and(|at| inner.checked.contains(&at))
        };
        if is_checked {
            return Ok(());
        }
        match self.find(block)? {
            Some(record) if !self.has_sound_bytes(&record)? => Err(damaged(record.at)),
            _ => Ok(()),
        }
    }

    /// Whether more than half of it are records that no longer count.
    pub(super) fn is_mostly_dead(&self) -> bool {
        let inner = self.inner();
        inner.end > 2 * inner.index.live_len()
    }

    /// Takes the first staged block out of the index.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(super) fn take_first(&self) -> Result<Option<Record>> {
        let Some(block) = self.next_from(BlockIndex(0)) else {
            return Ok(None);
        };
        let record = self.find(block)?;
        self.inner().index.take_first();
        Ok(record)
    }

    /// An empty stage of the same job in an empty file.
    pub(super) fn successor(&self, file: Arc<dyn FileAt>) -> Self {
        Self::new(file, self.job, self.geometry, self.barriers)
    }

    /// The stage with all its records in the index again.
    ///
    /// # Errors
    /// As [`StageLog::open`].
    pub(super) fn read_again(self) -> Result<Self> {
        Self::open(self.file, self.job, self.geometry, self.barriers, None)
    }

    pub(super) fn barriers(&self) -> Barriers {
        self.barriers
    }

    /// What this stage is known by.
    pub(crate) fn summary(&self) -> Summary {
        let inner = self.inner();
        Summary {
            len: inner.end,
            records: inner.sequence,
            hash: inner.headers.finalize().to_hex().to_string(),
        }
    }

    /// Of several threads the one that failed first need not be heard first: each says why.
    fn check_poison(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some((kind, text)) => Err(Error::new(*kind, text.clone())),
        }
    }

    fn poisoned(&self, error: std::io::Error, what: &str) -> Error {
        let error = failed(error, what);
        // The first one stays.
        let _ = self.poison.set((error.kind(), error.chain()));
        error
    }
}

/// What the runs of a block held before.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Old<'a> {
    /// Zeros.
    Zero,
    /// These bytes, the runs one after the other.
    Kept(&'a [u8]),
    /// Whatever it was: nobody wants it back.
    NotKept,
}

fn failed(error: std::io::Error, what: &str) -> Error {
    Error::io(error, what)
}

fn damaged(at: u64) -> Error {
    Error::new(
        ErrorKind::Damaged,
        "stage is damaged: a record does not check",
    )
    .at(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{Digest, HashKind};
    use crate::units::BlockSize;
    use failback_vhdx::MemoryFile;

    const BLOCK: usize = 64 << 10;

    fn geometry() -> Geometry {
        let block = BlockSize::new(BLOCK as u64).unwrap();
        Geometry::new(16 * BLOCK as u64, block).unwrap()
    }

    fn check(stage: &StageLog) -> Result<()> {
        stage
            .blocks()
            .try_for_each(|block| stage.check_block(block))
    }

    fn open(bytes: &[u8]) -> Result<StageLog> {
        let file = Arc::new(MemoryFile::from_bytes(bytes));
        StageLog::open(file, Uuid::from_u128(7), geometry(), Barriers::new(), None)
    }

    fn put_page(stage: &StageLog, block: u8) {
        let (new, old) = ([block; 4096], [0xee; 4096]);
        let run = Range {
            start: 8192,
            end: 12288,
        };
        let leaf = Some(Leaf::Data(Digest::from([block; 32])));
        let index = BlockIndex(block.into());
        stage
            .put(index, &[run], Some(&new), Old::Kept(&old), (leaf, leaf))
            .unwrap();
    }

    /// Six records, flushed after the fourth, and what the stage holds of each block.
    fn six_records() -> (Vec<u8>, u64) {
        let file = Arc::new(MemoryFile::new());
        let stage = StageLog::new(
            file.clone(),
            Uuid::from_u128(7),
            geometry(),
            Barriers::new(),
        );
        let mut durable = 0;
        for block in 0..6_u8 {
            put_page(&stage, block);
            if block == 3 {
                stage.flush(Barrier::Window).unwrap();
                durable = stage.summary().len;
            }
        }
        (file.to_bytes(), durable)
    }

    // Goal: a torn end is dropped, and nothing before it. Method: cut the stage at every length.
    #[test]
    fn torn_tail_ends_the_scan() {
        let (bytes, durable) = six_records();
        let record_len = bytes.len() / 6;
        for len in (0..bytes.len()).step_by(61) {
            let whole = (len / record_len) as u64;
            match open(&bytes[..len]) {
                Ok(stage) => assert_eq!(stage.summary().records, whole, "{len}"),
                Err(error) => panic!("{len} of {durable}: {}", error.chain()),
            }
        }
    }

    // Goal: taking up a stage does not read what was durable: a source waits for it. Method: bytes
    // there that do not check are found by the check before SEAL alone, not when it is opened.
    #[test]
    fn only_heads_are_read_of_what_was_durable() {
        let (mut bytes, durable) = six_records();
        let at = bytes.len() / 6 + 5000;
        assert!((at as u64) < durable);
        bytes[at] ^= 1;

        let stage = open(&bytes).unwrap();

        assert_eq!(stage.summary().records, 6);
        assert_eq!(check(&stage).unwrap_err().kind(), ErrorKind::Damaged);
    }

    // Goal: records of an earlier run do not come back behind those of a later one, whether that
    // sealed its stage or not. Method: tear the fifth of six records, which are equally long, and
    // add one in its place; then put the sixth back.
    #[test]
    fn a_torn_tail_does_not_come_back() {
        let (mut bytes, _) = six_records();
        let whole = bytes.clone();
        let record_len = bytes.len() / 6;
        bytes[4 * record_len + 100] ^= 1;
        let file = Arc::new(MemoryFile::from_bytes(&bytes));
        let open = |sealed_len| {
            let job = Uuid::from_u128(7);
            StageLog::open(file.clone(), job, geometry(), Barriers::new(), sealed_len).unwrap()
        };
        let resumed = open(None);
        put_page(&resumed, 9);

        assert_eq!(open(None).summary(), resumed.summary());
        let sealed = resumed.summary();
        file.write_at(sealed.len, &whole[5 * record_len..]).unwrap();
        assert_eq!(open(Some(sealed.len)).summary(), sealed);
    }

    // Goal: a flipped bit never changes what is staged. Method: flip a bit of every byte; the stage
    // is refused, at once or when it is checked, or ends before the record, or the byte is padding.
    #[test]
    fn a_flipped_bit_is_found() {
        let (bytes, durable) = six_records();
        let record_len = bytes.len() / 6;
        let sound = open(&bytes).unwrap().summary();
        for at in (0..bytes.len()).step_by(7) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            let record = (at / record_len) as u64;
            match open(&bytes).and_then(|stage| check(&stage).map(|()| stage)) {
                Ok(stage) if stage.summary() == sound => {
                    // Padding behind the header.
                    let within = at % record_len;
                    assert!((HEADER_LEN + 8..4096).contains(&within), "{at}");
                }
                Ok(stage) => assert_eq!(stage.summary().records, record, "{at}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Damaged);
                    assert!(
                        (at as u64) < durable,
                        "{at}: only what was durable is damage"
                    );
                }
            }
        }
    }

    // Goal: memory is bounded: a block more than the limit is refused with a message that says what
    // helps, by a stage that grows and by one that is read; others go on. Method: a limit of four.
    #[test]
    fn more_blocks_than_the_index_holds_are_refused() {
        let (bytes, _) = six_records();
        let stage = open(&[]).unwrap();
        stage.inner().index = Index::with_max(4);
        let run = [Range { start: 0, end: 4 }];
        let put = |block| {
            let index = BlockIndex(block);
            stage.put(index, &run, Some(b"new!"), Old::Zero, (None, None))
        };
        (0..4).for_each(|block| assert!(!put(block).unwrap()));
        let error = put(4).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.chain().contains("larger blocks"), "{}", error.chain());
        put(3).unwrap();
        stage.drop_block(BlockIndex(0)).unwrap();
        put(5).unwrap();
        assert_eq!(
            stage.blocks().map(|b| b.0).collect::<Vec<_>>(),
            [1, 2, 3, 5]
        );

        let file = Arc::new(MemoryFile::from_bytes(&bytes));
        let job = Uuid::from_u128(7);
        let stage = StageLog::new(file, job, geometry(), Barriers::new());
        stage.inner().index = Index::with_max(4);
        assert_eq!(stage.scan(u64::MAX).unwrap_err().kind(), ErrorKind::Refused);
    }

    /// A file whose flushes take as long as somebody wants.
    #[derive(Debug)]
    struct SlowFile {
        file: MemoryFile,
        may_end: Mutex<std::sync::mpsc::Receiver<()>>,
    }

    impl FileAt for SlowFile {
        fn len(&self) -> std::io::Result<u64> {
            self.file.len()
        }

        fn read_at(&self, at: u64, buf: &mut [u8]) -> std::io::Result<()> {
            self.file.read_at(at, buf)
        }

        fn write_at(&self, at: u64, data: &[u8]) -> std::io::Result<()> {
            self.file.write_at(at, data)
        }

        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.file.set_len(len)
        }

        fn sync(&self) -> std::io::Result<()> {
            // Once nobody wants it any more, they take no time.
            let _ = self.may_end.lock().unwrap().recv();
            Ok(())
        }

        fn zero(&self, range: Range<u64>) -> std::io::Result<()> {
            self.file.zero(range)
        }

        fn allocate(&self, range: Range<u64>) -> std::io::Result<()> {
            self.file.allocate(range)
        }

        fn extent_at(&self, at: u64) -> std::io::Result<failback_vhdx::FileExtent> {
            self.file.extent_at(at)
        }
    }

    // Goal: writers do not run ahead of a flush without end. Method: one that waits for a word; at
    // a window of two records, those that write find place for four.
    #[test]
    fn a_slow_flush_holds_writers_up() {
        let (end, may_end) = std::sync::mpsc::channel();
        let file = Arc::new(SlowFile {
            file: MemoryFile::new(),
            may_end: Mutex::new(may_end),
        });
        let record_len = six_records().0.len() as u64 / 6;
        let barriers = Barriers::new().with_window(2 * record_len);
        let stage = StageLog::new(file.clone(), Uuid::from_u128(7), geometry(), barriers);
        std::thread::scope(|scope| {
            for from in [0, 8] {
                let stage = &stage;
                scope.spawn(move || (from..from + 8).for_each(|block| put_page(stage, block)));
            }
            std::thread::sleep(std::time::Duration::from_millis(300));

            assert_eq!(file.len().unwrap(), 4 * record_len);
            drop(end);
        });

        assert_eq!(stage.summary().records, 16);
        assert_eq!(file.len().unwrap(), 16 * record_len);
    }

    // Goal: what became durable is looked at once, and nothing else: the rest is left for the seal.
    // Method: a window of two records; each of four is damaged, in turn, before the last is added.
    #[test]
    fn a_window_is_checked_once_it_is_durable() {
        let record_len = six_records().0.len() / 6;
        let barriers = Barriers::new().with_window(2 * record_len as u64);
        for damaged_record in 0..4 {
            let file = Arc::new(MemoryFile::new());
            let stage = StageLog::new(file.clone(), Uuid::from_u128(7), geometry(), barriers);
            (0..3).for_each(|block| put_page(&stage, block));
            let at = (damaged_record + 1) * record_len - 1;
            let damage = |file: &MemoryFile| file.write_at(at as u64, &[0xff]).unwrap();
            if damaged_record == 0 {
                damage(&file);
            }
            let first = stage.check_durable(stage.durable());
            assert_eq!(first.is_err(), damaged_record == 0, "{damaged_record}");
            put_page(&stage, 3);
            stage.flush(Barrier::Window).unwrap();
            if damaged_record > 0 {
                damage(&file);
            }
            let second = stage.check_durable(stage.durable());
            assert_eq!(second.is_err(), damaged_record > 1, "{damaged_record}");
            put_page(&stage, 4);
            assert!(check(&stage).is_ok(), "only the last is left");
            let at = 5 * record_len - 1;
            file.write_at(at as u64, &[0xff]).unwrap();
            assert!(check(&stage).is_err());
        }
    }

    // Goal: the last record of a block counts, and a drop takes it out. Method: one of each.
    #[test]
    fn later_records_replace_earlier_ones() {
        let stage = open(&[]).unwrap();
        let leaf = Some(Leaf::Data(HashKind::Blake3.zero_digest()));
        let run = [Range { start: 0, end: 4 }];
        let put =
            |bytes: &[u8; 4]| stage.put(BlockIndex(3), &run, Some(bytes), Old::Zero, (leaf, leaf));
        put(b"old!").unwrap();
        put(b"new!").unwrap();
        let record = stage.find(BlockIndex(3)).unwrap().unwrap();
        assert_eq!(stage.new_bytes(&record).unwrap(), b"new!");
        stage.drop_block(BlockIndex(3)).unwrap();
        assert!(stage.is_empty());
    }
}
