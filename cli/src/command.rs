//! One function for each command: arguments to a request, one call, output.

use anyhow::Context;
use failback_engine::agent::{Grants, serve as serve_peers};
use failback_engine::disk::{Format, NewDisk, create as create_disk};
use failback_engine::operation::{self, MapRequest, SyncRequest, VerifyRequest};
use failback_engine::transport::link::{Listener, tcp, unix};
use failback_engine::{Error, ErrorKind, Event, Observer};
use serde::Serialize;

use crate::args::{Command, CreateArgs, InfoArgs, Kind, MapArgs, ServeArgs, SyncArgs, VerifyArgs};
use crate::output;
use crate::size;
use crate::watch::{Watchers, cancel_on_signals};

/// Runs a command and says how to exit.
pub(crate) fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Info(args) => info(&args),
        Command::Create(args) => create(&args),
        Command::Map(args) => map(args),
        Command::Sync(args) => sync(args),
        Command::Verify(args) => verify(args),
        Command::Serve(args) => serve(&args),
    }
}

fn info(args: &InfoArgs) -> anyhow::Result<u8> {
    let info = operation::info(&args.image, args.format)?;
    match args.json {
        true => output::document(&info)?,
        false => output::info(&info)?,
    }
    Ok(0)
}

fn create(args: &CreateArgs) -> anyhow::Result<u8> {
    let usage = |message: &str| Error::new(ErrorKind::Usage, message).path(&args.image);
    if args.kind == Some(Kind::Differencing) {
        let message = "differencing images are not supported in this release";
        return Err(Error::new(ErrorKind::Unsupported, message)
            .path(&args.image)
            .into());
    }
    let format = args.format.or_else(|| Format::of_suffix(&args.image));
    let format =
        format.ok_or_else(|| usage("the suffix does not say what to make; give --format"))?;
    if format == Format::Raw && args.kind == Some(Kind::Fixed) {
        return Err(usage("a raw image has no kinds; leave --kind out").into());
    }
    let narrow =
        |len: u64| u32::try_from(len).map_err(|_| usage("block or sector size is too large"));
    create_disk(
        &args.image,
        &NewDisk {
            format,
            len: args.size,
            sector_size: narrow(args.sector_size)?,
            block_size: args.block_size.map(narrow).transpose()?,
            is_fixed: match args.kind {
                Some(kind) => kind == Kind::Fixed,
                None => format == Format::Vhd,
            },
        },
    )?;
    let info = operation::info(&args.image, Some(format))?;
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
        format: args.format,
        save_as: args.output,
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

fn sync(args: SyncArgs) -> anyhow::Result<u8> {
    let watchers = Watchers::new(args.output_args.events.as_deref())?;
    let cancel = cancel_on_signals()?;
    let request = SyncRequest {
        source_format: args.formats.source_format,
        target_format: args.formats.target_format,
        strategy: args.strategy.strategy(),
        hash: args.hashing.hash(),
        block_size: args.hashing.block_size,
        verify: args.verify.level(),
        compress: args.compress,
        ..SyncRequest::new(args.source, args.target)
    };
    let report = operation::sync(&request, &watchers, &cancel);
    drop(watchers);
    output::report(&report, args.output_args.json)
}

fn verify(args: VerifyArgs) -> anyhow::Result<u8> {
    let watchers = Watchers::new(args.output_args.events.as_deref())?;
    let cancel = cancel_on_signals()?;
    let request = VerifyRequest {
        a: args.a,
        b: args.b,
        a_format: args.formats.source_format,
        b_format: args.formats.target_format,
        hash: args.hashing.hash(),
        block_size: args.hashing.block_size,
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
    serve_peers(&listener, &grants, &observer, &cancel)?;
    Ok(0)
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
