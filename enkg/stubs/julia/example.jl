# The least worker: each number is doubled. julia example.jl
include("enkg_worker.jl")

serve(x -> 2 .* x)
