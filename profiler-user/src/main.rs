//! The `greenscope` command.
fn main() {
    match greenscope::kernel::Engine::load(1024) {
        Ok(_) => println!("loaded"),
        Err(e) => {
            println!("{e}");
            let mut s = std::error::Error::source(&e);
            while let Some(x) = s {
                println!("{x}");
                s = x.source();
            }
        }
    }
}
