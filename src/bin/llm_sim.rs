//! A simulator of an OpenAI-compatible endpoint.

use std::io::Write;

use agenthub::llm::sim::{Options, Simulator, serve};
use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let simulator = Simulator::new(&options)?;

    // Taken over before the address is printed: whoever reads it may stop the process at once.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };

    let listener = TcpListener::bind(options.addr)
        .await
        .with_context(|| format!("cannot listen on {}", options.addr))?;
    let listening = serde_json::json!({ "listening": listener.local_addr()?.to_string() });
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{listening}")?;
    stdout.flush()?;

    serve(listener, simulator, stop).await?;
    Ok(())
}
