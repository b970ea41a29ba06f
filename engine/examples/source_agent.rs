//! `source_agent ADDRESS STATE NAME=IMAGE...`: embeds the engine where the machines run now. Serves
//! each machine's disk to the jobs of `target_agent`, which stop and start it by name.
//!
//! Listens at ADDRESS on loopback (`127.0.0.1:0`: at any port), and prints it; ends when its input
//! does.

#![allow(clippy::print_stdout, reason = "what it is asked for")]

mod hypervisor;

use std::path::Path;
use std::sync::Arc;

use failback_engine::agent::{Grants, Pair, serve};
use failback_engine::disk::OpenOptions;
use failback_engine::snapshot::Reflink;
use failback_engine::transport::link::{Shape, tcp};
use failback_engine::{CancelToken, Error, ErrorKind, Event, Result};
use hypervisor::ImageMachine;

fn main() -> Result<()> {
    let usage = || Error::new(ErrorKind::Usage, "source_agent ADDRESS STATE NAME=IMAGE...");
    let mut args = std::env::args().skip(1);
    let (address, state) = (
        args.next().ok_or_else(usage)?,
        args.next().ok_or_else(usage)?,
    );
    let mut grants = Grants::new();
    for machine in args {
        let (name, image) = machine.split_once('=').ok_or_else(usage)?;
        let image = Path::new(image);
        // Read from clones while it runs, and from the image itself once it is stopped.
        let pair = Pair::new(
            "recovery",
            Arc::new(ImageMachine::of(image)),
            Some(Arc::new(Reflink)),
        )
        .disk("os", image, OpenOptions::default());
        grants.add_pair(name, pair, Path::new(&state))?;
    }

    let listener = tcp::listen(&address).map_err(Error::from_transport)?;
    println!("{}", listener.local_addr());

    let cancel = CancelToken::new();
    let stop = cancel.clone();
    std::thread::spawn(move || {
        let _ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        stop.cancel();
    });
    let tell = |event: &Event| match event {
        Event::SessionStarted { peer, grant, role } => println!("{peer}: {role} of {grant}"),
        Event::SessionEnded { peer, outcome } => println!("{peer}: {outcome}"),
        _ => {}
    };
    serve(&listener, &grants, Shape::default(), &tell, &cancel)
}
