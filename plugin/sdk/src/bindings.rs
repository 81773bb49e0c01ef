//! The code that wit-bindgen generates from `wit/policy.wit`. None of it is handwritten.
//!
//! Records, enums and variants are plain Rust and work on any target. The imported functions and resources exist only inside a
//! component: only the module `lent` uses them, and it is compiled for WebAssembly only.

#![allow(clippy::all, reason = "generated code keeps no house style")]

wit_bindgen::generate!({
    path: "../../wit",
    world: "refresh-policy",
    additional_derives: [PartialEq, Clone],
    // It borrows handles, which can be neither compared nor copied.
    additional_derives_ignore: ["recreation"],
    pub_export_macro: true,
    export_macro_name: "export_component",
    default_bindings_module: "refit_policy::bindings",
});
