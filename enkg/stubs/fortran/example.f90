! The least worker: each number is doubled. gfortran -O2 -o example enkg_worker.f90 example.f90
program example
  use enkg_worker
  implicit none
  call enkg_serve(simulate)

contains

  subroutine simulate(x, y, status)
    real(enkg_real), intent(in) :: x(:)
    real(enkg_real), intent(out) :: y(:)
    integer, intent(out) :: status
    status = merge(0, 1, size(x) == size(y))
    if (status == 0) y = 2 * x
  end subroutine

end program
