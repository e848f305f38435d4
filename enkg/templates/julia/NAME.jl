# A body cools in a room of 20 degrees: 2 numbers in, 12 temperatures out.
#
#     julia NAME.jl              stays up and takes members from enkg, one after another
#     julia NAME.jl IN OUT       computes one member: numbers in text files
#
# Put your own computation into simulate(), and the shapes into simulator.toml.

include("enkg_worker.jl")

# x: 2 numbers to 12. An exception fails this member and no other.
function simulate(x)
    x[2] > 0 || error("the rate must be positive: a body that warms up by itself")
    return 20 .+ x[1] .* exp.(-x[2] .* (0:5:55))
end

if length(ARGS) == 2
    x = [parse(Float64, word) for word in split(read(ARGS[1], String))]
    open(file -> foreach(value -> println(file, value), simulate(x)), ARGS[2], "w")
else
    EnkgWorker.serve(simulate)
end
