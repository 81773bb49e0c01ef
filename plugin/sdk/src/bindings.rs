//! What wit-bindgen makes of `wit/policy.wit`. Nothing is written by hand here.
//!
//! Records, enums and variants are plain Rust and work anywhere. The imported functions and resources exist only inside a
//! component: `lent` is the one module that names them, and it is compiled for WebAssembly only.

#![allow(clippy::all, reason = "generated code keeps no house style")]

wit_bindgen::generate!({
    path: "../../wit",
    world: "refresh-policy",
    additional_derives: [PartialEq, Clone],
    // It borrows handles, which are neither comparable nor copied.
    additional_derives_ignore: ["recreation"],
    pub_export_macro: true,
    export_macro_name: "export_component",
    default_bindings_module: "refit_policy::bindings",
});
