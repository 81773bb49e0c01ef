//! The generated host side of `wit/policy.wit`.

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "refresh-policy",
    imports: { default: async | trappable },
    exports: { default: async },
    require_store_data_send: true,
    with: {
        "refit:policy/docker.container": super::capabilities::ContainerResource,
        "refit:policy/docker.pulled-image": super::capabilities::ImageResource,
    },
});
