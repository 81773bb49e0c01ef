;; Is a component of a hundred modules more than it needs
;; beside it: 100 × (module)
