//! One function for each command: arguments to a request, one call, output.

use std::path::Path;

use anyhow::Context;
use failback_engine::agent::{ControlSpec, Grants, serve as serve_peers};
use failback_engine::disk::{Format, NewDisk, OpenOptions, create as create_disk, create_child};
use failback_engine::operation::{
    self, LinkOptions, MapPlace, MapRequest, RecoveryReport, SyncRequest, VerifyRequest,
};
use failback_engine::transport::Apply;
use failback_engine::transport::link::{Listener, tcp, unix};
use failback_engine::{Error, ErrorKind, Event, Observer};
use serde::Serialize;

use crate::args::{
    CheckArgs, Command, CreateArgs, InfoArgs, Kind, MapArgs, MergeArgs, RecoveryArgs, ServeArgs,
    SyncArgs, VerifyArgs,
};
use crate::job_command;
use crate::output;
use crate::pair_command;
use crate::size;
use crate::watch::{Watchers, cancel_on_signals};

/// Runs a command and says how to exit.
pub(crate) fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Info(args) => info(&args),
        Command::Check(args) => check(&args),
        Command::Create(args) => create(&args),
        Command::Map(args) => map(args),
        Command::Plan(args) => plan(args),
        Command::Sync(args) => sync(args),
        Command::Merge(args) => merge(args),
        Command::Verify(args) => verify(args),
        Command::Recover(args) => {
            let cancel = cancel_on_signals()?;
            let state = args.state.state_dir.as_deref();
            recovered(&args, operation::recover(&args.target, state, &cancel))
        }
        Command::Rollback(args) => {
            let cancel = cancel_on_signals()?;
            let state = args.state.state_dir.as_deref();
            recovered(&args, operation::roll_back(&args.target, state, &cancel))
        }
        Command::Commit(args) => {
            let state = args.state.state_dir.as_deref();
            recovered(&args, operation::accept(&args.target, state))
        }
        Command::Job(command) => job_command::run(&command),
        Command::Pair(command) => pair_command::run(&command),
        Command::Serve(args) => serve(&args),
    }
}

fn info(args: &InfoArgs) -> anyhow::Result<u8> {
    let info = operation::info(
        &args.image,
        &args.open.options(),
        args.state.state_dir.as_deref(),
    )?;
    match args.json {
        true => output::document(&info)?,
        false => output::info(&info)?,
    }
    Ok(0)
}

fn check(args: &CheckArgs) -> anyhow::Result<u8> {
    let found = operation::check(&args.image, args.parent.as_deref())?;
    output::check(&found, args.json)
}

fn create(args: &CreateArgs) -> anyhow::Result<u8> {
    let usage = |message: &str| Error::new(ErrorKind::Usage, message).path(&args.image);
    let format = args.format.or_else(|| Format::of_suffix(&args.image));
    let format =
        format.ok_or_else(|| usage("the suffix does not say what to make; give --format"))?;
    let narrow =
        |len: u64| u32::try_from(len).map_err(|_| usage("block or sector size is too large"));
    let block_size = args.block_size.map(narrow).transpose()?;
    let is_child = !args.parents.is_empty();
    let open = OpenOptions {
        parents: args.parents.clone(),
        follow_parents: args.follow_parents,
        ..OpenOptions::of_format(Some(format))
    };
    match (args.kind, args.size) {
        (None | Some(Kind::Differencing), None) => {
            if args.sector_size.is_some() {
                return Err(usage("a differencing image has the sectors of its parent").into());
            }
            create_child(&args.image, &open, block_size)?;
        }
        (Some(Kind::Differencing), Some(_)) if !is_child => {
            return Err(usage("a differencing image needs a --parent").into());
        }
        (_, Some(_)) if is_child => {
            return Err(usage("a differencing image has the size of its parent").into());
        }
        (_, None) => return Err(usage("only a differencing image has a parent").into()),
        (Some(_), Some(_)) if format == Format::Raw => {
            return Err(usage("a raw image has no kinds; leave --kind out").into());
        }
        (kind, Some(len)) => create_disk(
            &args.image,
            &NewDisk {
                format,
                len,
                sector_size: narrow(args.sector_size.unwrap_or(512))?,
                block_size,
                is_fixed: match kind {
                    Some(kind) => kind == Kind::Fixed,
                    None => format == Format::Vhd,
                },
            },
        )?,
    }
    let info = operation::info(&args.image, &open, None)?;
    match args.json {
        true => output::document(&info)?,
        false => output::info(&info)?,
    }
    Ok(0)
}

fn map(args: MapArgs) -> anyhow::Result<u8> {
    let watchers = Watchers::new(args.output_args.events.as_deref())?;
    let cancel = cancel_on_signals()?;
    let request = MapRequest {
        path: args.image,
        open: args.open.options(),
        save: match (args.output, args.save) {
            (Some(path), _) => MapPlace::File(path),
            (None, true) => MapPlace::State,
            (None, false) => MapPlace::Nowhere,
        },
        state: args.state.state_dir,
        hash: args.hashing.hash(),
        block_size: args.hashing.block_size,
    };
    let map = operation::map(&request, &watchers, &cancel);
    drop(watchers);
    let map = map?;
    match args.output_args.json {
        true => output::document(&map)?,
        false => output::map(&map)?,
    }
    Ok(0)
}

fn plan(args: SyncArgs) -> anyhow::Result<u8> {
    let json = args.output_args.json;
    let watchers = Watchers::new(args.output_args.events.as_deref())?;
    let report = operation::plan(&sync_request(args)?, &watchers);
    drop(watchers);
    output::report(&report, json)
}

fn sync(args: SyncArgs) -> anyhow::Result<u8> {
    let json = args.output_args.json;
    let events = args.output_args.events.clone();
    let request = sync_request(args)?;
    let watchers = Watchers::new(events.as_deref())?;
    let cancel = cancel_on_signals()?;
    let report = operation::sync(&request, &watchers, &cancel);
    drop(watchers);
    output::report(&report, json)
}

fn sync_request(args: SyncArgs) -> anyhow::Result<SyncRequest> {
    let apply = args.applying.apply().ok_or_else(|| {
        let message = "a sync in place keeps no undo: --apply in-place goes without --keep-undo";
        Error::new(ErrorKind::Usage, message)
    })?;
    let container = args.applying.container();
    if apply == Apply::InPlace && container.is_some() {
        let message = "nothing is staged in place: --apply in-place goes without --stage";
        return Err(Error::new(ErrorKind::Usage, message).into());
    }
    Ok(SyncRequest {
        source_open: args.open.source(),
        target_open: args.open.target(args.no_sibling_check),
        strategy: args.strategy.strategy(),
        hash: args.hashing.hash(),
        block_size: args.hashing.block_size,
        verify: args.verify.level(),
        compress: args.compress,
        apply,
        container,
        state: args.applying.state.state_dir,
        maps: (!args.no_map).then(|| args.audit.audit()),
        link: LinkOptions {
            shape: args.link.shape(),
            count: args.links,
        },
        objective: args.planning.objective(),
        downtime_budget: args.planning.downtime_budget,
        seed: args.planning.seed,
        ..SyncRequest::new(args.source, args.target)
    })
}

fn merge(args: MergeArgs) -> anyhow::Result<u8> {
    let watchers = Watchers::new(args.output_args.events.as_deref())?;
    let cancel = cancel_on_signals()?;
    let open = OpenOptions {
        parents: args.parents,
        follow_parents: args.follow_parents,
        skip_sibling_check: args.no_sibling_check,
        ..OpenOptions::default()
    };
    let merged = operation::merge(&args.image, &open, &watchers, &cancel);
    drop(watchers);
    let merged = merged?;
    match args.output_args.json {
        true => output::document(&merged)?,
        false => output::merged(&merged)?,
    }
    Ok(0)
}

fn recovered(
    args: &RecoveryArgs,
    report: failback_engine::Result<RecoveryReport>,
) -> anyhow::Result<u8> {
    let report = report?;
    match args.json {
        true => output::document(&report)?,
        false => output::recovered(&report)?,
    }
    Ok(0)
}

fn verify(args: VerifyArgs) -> anyhow::Result<u8> {
    let watchers = Watchers::new(args.output_args.events.as_deref())?;
    let cancel = cancel_on_signals()?;
    let request = VerifyRequest {
        a: args.a,
        b: args.b,
        a_open: args.open.source(),
        b_open: args.open.target(true),
        hash: args.hashing.hash(),
        block_size: args.hashing.block_size,
        link: LinkOptions {
            shape: args.link.shape(),
            ..LinkOptions::default()
        },
    };
    let report = operation::verify(&request, &watchers, &cancel);
    drop(watchers);
    output::report(&report, args.output_args.json)
}

#[derive(Serialize)]
struct Listening<'a> {
    listening: &'a str,
}

fn serve(args: &ServeArgs) -> anyhow::Result<u8> {
    let mut grants = Grants::new();
    for grant in &args.grants {
        grants.add_text(grant, |text| size::parse(text).ok())?;
    }
    grants.open_all_with(&OpenOptions {
        follow_parents: args.follow_parents,
        skip_sibling_check: args.no_sibling_check,
        ..OpenOptions::default()
    });
    if let Some(directory) = &args.state.state_dir {
        grants.keep_state_in(directory);
    }
    if let Some(file) = &args.control {
        let state = match &args.state.state_dir {
            Some(directory) => job_command::current_directory()?.join(directory),
            None => job_command::default_root()?,
        };
        grants.add_control(&control(file)?, &state)?;
    }
    let watchers = Watchers::new(args.events.as_deref())?;
    let cancel = cancel_on_signals()?;
    let listener = listen(&args.listen)?;
    match args.json {
        true => output::line(&Listening {
            listening: listener.local_addr(),
        })?,
        false => output::say(&format!("listening on {}", listener.local_addr()))?,
    }
    let observer = |event: &Event| {
        watchers.event(event);
        match event {
            Event::SessionStarted { peer, grant, role } => {
                output::note(&format!("{peer}: {grant} as {role}"));
            }
            Event::SessionEnded { peer, outcome } => output::note(&format!("{peer}: {outcome}")),
            _ => {}
        }
    };
    serve_peers(&listener, &grants, args.link.shape(), &observer, &cancel)?;
    Ok(0)
}

pub(crate) fn control(path: &Path) -> anyhow::Result<ControlSpec> {
    let text =
        std::fs::read_to_string(path).map_err(|e| Error::io(e, "read control file").path(path))?;
    let base = job_command::current_directory()?;
    Ok(ControlSpec::from_toml_at(&text, &base).map_err(|error| error.path(path))?)
}

fn listen(address: &str) -> anyhow::Result<Listener> {
    let usage = || {
        Error::new(
            ErrorKind::Usage,
            format!("`{address}` is neither unix:///PATH nor tcp://127.0.0.1:PORT"),
        )
    };
    let listener = match address.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => unix::listen(path.as_ref()),
        Some(("tcp", host)) => tcp::listen(host),
        _ => return Err(usage().into()),
    };
    listener
        .map_err(Error::from_transport)
        .with_context(|| format!("listen on {address}"))
}
