//! The `prewarm` program.

fn main() -> std::process::ExitCode {
    prewarm::cli::main()
}
