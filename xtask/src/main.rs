//! greenscope's build, checks and measurements: `cargo xtask COMMAND`.
#![forbid(unsafe_code)]

mod codegen_layouts;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["codegen", "layouts"] => codegen_layouts::run(false),
        ["codegen", "layouts", "--check"] => codegen_layouts::run(true),
        _ => anyhow::bail!("usage: cargo xtask codegen layouts [--check]"),
    }
}
