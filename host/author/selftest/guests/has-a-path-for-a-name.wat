;; Says that its name is a path, so that its state might go elsewhere
(data (i32.const 1024) "../../root/.ssh/id")
(data (i32.const 2048) "\00\04\00\00" "\12\00\00\00" "\00\04\00\00" "\01\00\00\00")
(func (export "describe") (type $describe) (i32.const 2048))
