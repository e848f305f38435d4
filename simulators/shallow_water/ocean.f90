! Water of depth H(x) in a basin with closed walls. On a C grid (Arakawa and Lamb 1977) of n x n
! cells, surface eta at the centres, velocities u and v on the faces, forward-backward in time:
!
!     u <- u - g dt/dx (eta_east - eta),   v <- v - g dt/dx (eta_north - eta)
!     eta <- eta - dt/dx (F_east - F_west + G_north - G_south),   F = u (H + eta_upwind), G alike
!
! with H on the face. The flux knows the height of the wave (nonlinear) and conserves the volume;
! the advection of momentum, some |u| / c = 1e-3 of the rest, is left out. H falls linearly from
! west to east. Taking H upwind as well would make the map from the start to the gauges nonlinear
! for the smallest waves, because H then jumps with the sign of u.
!
! Each rank holds a strip of rows and exchanges one row with each neighbour per step. Every number
! is computed by the same operations whatever the strips, so the gauges do not depend on the ranks.

module ocean
  use, intrinsic :: iso_c_binding
  use world
  use files, only: settings
  implicit none
  real(c_double), parameter :: gravity = 9.81_c_double, courant = 0.4_c_double

contains

  subroutine simulate(chosen, places, field, series, dry)
    ! field: the surface at the start, (n, n), afterwards that at the end; the same on all ranks.
    ! places: (2, gauges). series: (minutes, gauges), the surface at the gauges, on all ranks.
    ! dry: the minute in which the depth was not positive (or NaN) anywhere; -1 for never.
    type(settings), intent(in) :: chosen
    real(c_double), intent(in) :: places(:, :)
    real(c_double), intent(inout) :: field(:, :)
    real(c_double), intent(out) :: series(:, :)
    integer, intent(out) :: dry
    real(c_double), allocatable :: eta(:, :), u(:, :), v(:, :), f(:, :), g(:, :), depth(:), face(:)
    real(c_double) :: dx, dt
    integer :: n, m, first, steps, minute, step, i
    logical :: wet

    n = size(field, 1)
    first = rank*n/ranks ! this rank's rows are first + 1 to first + m
    m = (rank + 1)*n/ranks - first
    allocate (eta(n, 0:m + 1), u(0:n, m), v(n, 0:m), f(0:n, m), g(n, 0:m), depth(n), face(n))
    depth = chosen%deep + (chosen%shallow - chosen%deep)*[((i - 0.5_c_double)/n, i=1, n)]
    face = chosen%deep + (chosen%shallow - chosen%deep)*[(real(i, c_double)/n, i=1, n)]
    eta = 0; u = 0; v = 0; f = 0; g = 0; series = 0
    eta(:, 1:m) = field(:, first + 1:first + m)
    dx = chosen%side/n
    steps = ceiling(60*sqrt(gravity*max(chosen%deep, chosen%shallow))/(courant*dx))
    dt = 60.0_c_double/steps

    dry = -1
    wet = all(spread(depth, 2, m) + eta(:, 1:m) > 0)
    do minute = 0, chosen%minutes
      if (minute > 0) then
        do step = 1, steps
          call swap(eta)
          call advance(eta, u, v, f, g, depth, face, gravity*dt/dx, dt/dx, first == 0, &
                       first + m == n, wet)
        end do
      end if
      if (world_largest(merge(0, 1, wet)) == 1) then
        dry = minute
        return
      end if
      call swap(eta)
      if (minute > 0) call record(eta, first, m, dx, places, series(minute, :))
    end do

    field = 0
    field(:, first + 1:first + m) = eta(:, 1:m)
    if (ranks > 1) call world_sum(field, n*n)
    if (ranks > 1) call world_sum(series, size(series))
  end subroutine

  subroutine swap(eta)
    ! Fills the outer rows with the neighbours' surface.
    real(c_double), contiguous, intent(inout) :: eta(:, 0:)
    integer :: n, m
    n = size(eta, 1)
    m = ubound(eta, 2) - 1
    call world_swap(eta(:, m), rank + 1, eta(:, 0), rank - 1, n)
    call world_swap(eta(:, 1), rank - 1, eta(:, m + 1), rank + 1, n)
  end subroutine

  subroutine advance(eta, u, v, f, g, depth, face, kick, ratio, southmost, northmost, wet)
    ! One time step. Face i of u lies east of cell i, face j of v north of row j. Row 0 of v is the
    ! southern neighbour's last one, computed twice instead of sent. depth: of the still water at
    ! the centres and the faces of v. face: at the faces of u.
    real(c_double), intent(inout) :: eta(:, 0:), u(0:, :), v(:, 0:), f(0:, :), g(:, 0:)
    real(c_double), intent(in) :: depth(:), face(:), kick, ratio
    logical, intent(in) :: southmost, northmost
    logical, intent(inout) :: wet
    integer :: n, m, i, j
    n = size(eta, 1)
    m = size(u, 2)
    do j = merge(1, 0, southmost), merge(m - 1, m, northmost)
      do i = 1, n
        v(i, j) = v(i, j) - kick*(eta(i, j + 1) - eta(i, j))
        g(i, j) = v(i, j)*(depth(i) + merge(eta(i, j), eta(i, j + 1), v(i, j) > 0))
      end do
    end do
    do j = 1, m
      do i = 1, n - 1
        u(i, j) = u(i, j) - kick*(eta(i + 1, j) - eta(i, j))
        f(i, j) = u(i, j)*(face(i) + merge(eta(i, j), eta(i + 1, j), u(i, j) > 0))
      end do
    end do
    do j = 1, m
      do i = 1, n
        eta(i, j) = eta(i, j) - ratio*((f(i, j) - f(i - 1, j)) + (g(i, j) - g(i, j - 1)))
      end do
      wet = wet .and. all(depth + eta(:, j) > 0)
    end do
  end subroutine

  subroutine record(eta, first, m, dx, places, values)
    ! The surface at the gauges of this rank's rows, bilinear between the four nearest centres.
    real(c_double), intent(in) :: eta(:, 0:), dx, places(:, :)
    integer, intent(in) :: first, m
    real(c_double), intent(out) :: values(:)
    real(c_double) :: x, y, low, high
    integer :: n, i, j, k
    n = size(eta, 1)
    values = 0
    do k = 1, size(values)
      x = min(max(places(1, k)/dx + 0.5_c_double, 1.0_c_double), real(n, c_double))
      y = min(max(places(2, k)/dx + 0.5_c_double, 1.0_c_double), real(n, c_double))
      i = min(int(x), n - 1)
      j = min(int(y), n - 1)
      if (j <= first .or. j > first + m) cycle
      x = x - i
      y = y - j
      j = j - first
      low = (1 - x)*eta(i, j) + x*eta(i + 1, j)
      high = (1 - x)*eta(i, j + 1) + x*eta(i + 1, j + 1)
      values(k) = (1 - y)*low + y*high
    end do
  end subroutine

end module
