/* views.h -- all views of this process, and what a fork makes of them (floor C4). */
#ifndef SST_VIEWS_H
#define SST_VIEWS_H

#include "view.h"

void sst_view_list(sst_seg *s);
/* Takes it off the list, unmaps it and closes its descriptors. No thread may be in a call. */
void sst_view_end(sst_seg *s);

#endif
