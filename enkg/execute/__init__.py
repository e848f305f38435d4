"""Adapters: how a simulator is run.

function            a Python function in this process
pool                a Python function in other processes
  pool_process        processes of our own         pool_main   what runs in them
  pool_executor       executors of the user's      parcel      functions on their way
program             any executable, by its simulator.toml
  manifest            what that file may say       reading     how it is read and checked
  worker              programs that stay up        channel, frames   how they are spoken to
  oneshot             programs that start anew     template, scratch their run directories
  exchange, netcdf    files of numbers             files       opened with care
  launcher            mpiexec, srun and their kin
umbridge            models behind HTTP             http        the requests
slots               the queue of members before all of these
process             programs started and ended     environment what they find around them
  guard               ends them if enkg is killed  verdict     why they ended
  printed             what they print              leftovers   what crashed MPI leaves behind
crew                other ranks of an MPI world    crew_rank   what they do
  mail                letters between them
allocation          the nodes of a batch job
cache               answers that were paid for     identity    whose they are
  remember            the rest of a batch          around      what lies around the slots
"""

from enkg.execute.cache import Cached
from enkg.execute.function import Function, as_evaluator, opened
from enkg.execute.pool import Pool
from enkg.execute.program import Program
from enkg.execute.umbridge import UMBridge

__all__ = ["Cached", "Function", "Pool", "Program", "UMBridge", "as_evaluator", "opened"]
