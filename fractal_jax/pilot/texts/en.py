"""English."""

TEXTS = {
  'title': 'Pilot: {question}',
  'unnamed': 'does it work for this data?',
  'owner': 'Decided by: {owner}. ',
  'origin': 'Data: {data}. Report of {day}.',
  'worth': (
    'If production is like the last stage that ran, a year brings {middle} '
    '{unit} net, between {low} and {high}.'
  ),
  'settle': (
    ' If this stays as it is, about {times} times as much data would decide it.'
  ),
  'span': '{low} to {high}',
  'verdict': 'Verdict: {verdict}',
  'GO': 'GO',
  'NO-GO': 'NO-GO',
  'MORE DATA': 'MORE DATA',
  'of stage': '{stage}: {verdict}',
  'not run': 'not run',
  'reason GO': (
    'Every stage passed all of its criteria, and the intervals leave no doubt: '
    'the way to production below can begin.'
  ),
  'reason NO-GO': (
    'Stage “{stage}” shows that it does not work: {gate}. Found was {value}, '
    'and {threshold} is required.'
  ),
  'reason MORE DATA': (
    'Stage “{stage}” can not be decided yet: {gate}. Found was {value}, and '
    '{threshold} is required. With what is known this may be chance.'
  ),
  'reason unknown': (
    'Stage “{stage}” can not be decided: {gate}. This is not known, and '
    '{threshold} is required.'
  ),
  'reason unfinished': (
    'All stages so far passed. Stage “{stage}” has not run yet, so that there '
    'is no verdict of the whole.'
  ),
  'data': 'Data',
  'module': 'Modules',
  'composition': 'Composition',
  'full': 'Full size',
  'shadow': 'Shadow run',
  'about data': (
    'Is there enough, is it whole, and does the test hide in the training data?'
  ),
  'about module': (
    'Each level of the model alone, small: does it learn anything that a model '
    'without memory does not know?'
  ),
  'about composition': (
    'The levels together: are they better than simple models, and no worse '
    'than one flat model that takes as much computing?'
  ),
  'about full': (
    'The model of full size, on rows that it has not seen: does it find '
    'incidents, how often does it cry wolf, does it know what it knows?'
  ),
  'about shadow': (
    'A replay of the last rows in their order, as in production: every score '
    'looks at the past alone.'
  ),
  'gates': 'Criteria',
  'stage': 'stage',
  'criterion': 'criterion',
  'threshold': 'required',
  'found': 'found',
  'interval': '95% interval',
  'decision': 'verdict',
  'least': 'at least {x}',
  'most': 'at most {x}',
  'nothing': 'not known',
  'level': '{name}, level {level}',
  'gate least_windows': 'independent windows to learn from',
  'gate most_missing': 'share of missing values',
  'gate most_leak': 'share of test data that stands in the training data',
  'gate most_drift': 'drift of a mean, in standard deviations',
  'gate least_incidents': 'incidents to test with',
  'gate module_bits': 'bits per value saved against a model without memory',
  'gate composition_bits': 'bits per value saved against the best simple model',
  'gate flat_bits': 'bits per value saved against a flat model',
  'gate found': 'share of the incidents found',
  'gate weekly_false_alarms': 'false alarms per week',
  'gate most_z2': 'squared error over what the model expects',
  'gate shadow_found': 'share of the incidents found, in the shadow run',
  'gate shadow_weekly_false_alarms': (
    'false alarms per week, in the shadow run'
  ),
  'gate most_delay': 'rows from an incident to its alarm',
  'gate most_milliseconds': 'milliseconds to score a row',
  'changed': (
    'Criterion “{gate}” was changed after the stage ran: {old} then, {new} '
    'now. The verdict is that of the old one.'
  ),
  'facts': 'What was found',
  'fact rows': 'rows',
  'fact channels': 'channels',
  'fact missing': 'share of missing values',
  'fact constant': 'constant channels',
  'fact incidents': 'incidents to be found',
  'fact anomalous': 'share of rows within incidents',
  'fact explained': 'share of the variance that a linear model explains',
  'fact histogram': 'bits per value: model without memory',
  'fact bits_{i}': 'bits per value: level {i} alone',
  'fact spread_{i}': 'deviation between seeds: level {i}',
  'fact enough': 'rows after which more bring little',
  'fact together': 'bits per value: levels together',
  'fact flat': 'bits per value: flat model of equal compute',
  'fact last_value': 'bits per value: as the row before',
  'fact linear': 'bits per value: linear autoregression',
  'fact polynomial': 'bits per value: polynomial',
  'fact spread': 'deviation between seeds',
  'fact incidents_found': 'incidents found',
  'fact false_alarms': 'false alarms',
  'fact weeks': 'weeks of normal operation',
  'fact threshold': 'score from which there is an alarm',
  'fact steps': 'steps of training',
  'fact memory_gb': 'memory taken at most, GB',
  'picture data': 'The data; the grey part is learnt from.',
  'picture module': (
    'Learning curve: bits per value on held-out rows against the rows that '
    'were learnt from.'
  ),
  'picture drawn': (
    'Above: windows of the data. Below: windows that the model made up. They '
    'should look alike.'
  ),
  'picture alarms': (
    'The data, and below it the score. Dashed: the threshold. Red: alarms. '
    'Green: incidents.'
  ),
  'picture pit': (
    'Calibration: where values fall in what was predicted. Flat is right.'
  ),
  'picture worst': 'The most surprising stretches.',
  'roi': 'What it is worth',
  'roi missing': (
    'Not computed: fill in the costs in pilot.toml, and run the stages up to '
    '“{stage}”.'
  ),
  'roi formula': (
    'A year = incidents × share found × share of the cost that an alarm saves '
    '× cost of an incident − false alarms per week × 52 × cost of one − hours '
    'of upkeep × hour of work − hours of hardware × hour of hardware. The '
    'first year has the hours of setup on top. Low and high take the bad and '
    'the good ends of both intervals.'
  ),
  'low': 'low',
  'middle': 'middle',
  'high': 'high',
  'roi found': 'share of incidents found',
  'roi false_alarms': 'false alarms per week',
  'roi saved': 'saved per year',
  'roi alarms': 'false alarms, per year',
  'roi upkeep': 'upkeep and hardware, per year',
  'roi setup': 'setup, once',
  'roi yearly': 'net, per year',
  'roi first_year': 'net, the first year',
  'roi months': 'months until it has paid',
  'never': 'never',
  'break even': ('A year pays from a share of {share} of the incidents found.'),
  'no break even': 'A year does not pay even if every incident is found.',
  'sensitivity': (
    'What it depends on: the change of a year where an input is 20% larger '
    '(shares: 100% at most)'
  ),
  'cost incident': 'cost of an incident',
  'cost incidents_per_year': 'incidents per year',
  'cost preventable': 'share of the cost that an alarm saves',
  'cost false_alarm': 'cost of a false alarm',
  'cost hour_of_work': 'hour of work',
  'cost setup_hours': 'hours of setup',
  'cost upkeep_hours': 'hours of upkeep',
  'cost hour_of_hardware': 'hour of hardware',
  'cost hardware_hours': 'hours of hardware',
  'cost found': 'share of incidents found',
  'cost weekly': 'false alarms per week',
  'price': 'Cost of the pilot',
  'spent': 'So far {minutes} minutes of this machine.',
  'next price': (
    'The next stage, “{stage}”, will take about {minutes} minutes of training.'
  ),
  'risks': 'Risks and limits',
  'risk 0': (
    'The criteria say what held on these rows. What never happened in them was '
    'not tested.'
  ),
  'risk 1': (
    'Incidents are those that were labelled. A fault that nobody noted counts '
    'here as a false alarm.'
  ),
  'risk 2': (
    'Intervals take stretches of a window as independent. Slow change makes '
    'them too narrow.'
  ),
  'risk 3': (
    'After a change of the machine or the sensors the model has to learn again.'
  ),
  'risk 4': (
    'An alarm says that something is unusual, not what it is nor what to do.'
  ),
  'production': 'To production, and back',
  'step 0': (
    'Run it beside operation for some weeks, without anybody acting on it; '
    'compare with the shadow run above.'
  ),
  'step 1': (
    'Name who gets an alarm, what they do, and where they note whether it was '
    'right.'
  ),
  'step 2': (
    'Watch the share of rows above the threshold: where it doubles, something '
    'has drifted.'
  ),
  'step 3': (
    'Train again on a schedule, and release a model only where it passes the '
    'criteria above.'
  ),
  'step 4': (
    'To roll back, go back to the folder of the model before: it holds all '
    'that is needed. Keep the old alarms running until then.'
  ),
  'glossary': 'Glossary',
  'term GO': 'GO: the whole interval passes the criterion.',
  'term NO-GO': 'NO-GO: no part of the interval passes.',
  'term MORE DATA': (
    'MORE DATA: the interval lies on both sides, or too little is known.'
  ),
  'term bits': (
    'Bits per value: how surprised a model is by what it sees. Fewer are '
    'better.'
  ),
  'term interval': (
    '95% interval: of a hundred such intervals about 95 hold the true number.'
  ),
  'term level': (
    'Level: a part of the model. Level 0 sees a whole window, level 1 a few '
    'rows.'
  ),
  'term window': 'Window: the rows that the model sees at a time.',
  'term score': 'Score: how unusual a row is, averaged over some rows.',
  'term seed': 'Seed: the chance with which training begins.',
  'settings': 'pilot.toml has hash {hash}. The stage “{stage}” ran with {old}.',
  'settings same': 'Hash of pilot.toml: {hash}.',
  'fact gradient_{i}': 'gradient of level {i}: median norm',
  'fact gradient_spread_{i}': (
    'gradient of level {i}: deviation between seeds, as a share of the norm'
  ),
  'fact gradient_peak_{i}': (
    'gradient of level {i}: largest norm over the median'
  ),
  'fact worth_0': 'bits per value lost without what level 0 tells level 1',
  'fact worth_1': 'bits per value lost without what level 1 tells the values',
  'picture gradients': (
    'Norms of gradients, step by step: above level 0, below level 1, a line '
    'per seed. Lines that lie on each other, without peaks, are stable '
    'training.'
  ),
  # Of images: keys that end in @images take the place of those without.
  'about data@images': (
    'Are there enough, can they be read, do test images hide among those that '
    'are learnt from?'
  ),
  'about full@images': (
    'The model of full size, on images that it has not seen: does it do its '
    'task, and does it know more than it has learnt by heart?'
  ),
  'about shadow@images': (
    'A replay of images that no stage has looked at, in their order and one at '
    'a time, as in production.'
  ),
  'gate least_images': 'images to learn from',
  'gate most_unreadable': 'share of files that can not be used',
  'gate most_copies': 'share of test images that are copies of training images',
  'gate least_class': 'images of the smallest class',
  'gate most_shift': (
    'how far test images are brighter or darker, in standard deviations'
  ),
  'gate least_judged': 'images to test with',
  'gate least_anomalies': 'anomalous images to test with',
  'gate most_gap': 'bits per value that unseen images cost more',
  'gate distance': 'distance of drawn images over that of real ones',
  'gate most_strange': (
    'share of drawn images that are like no real one, less that of real ones'
  ),
  'gate most_missed': (
    'share of real images that are like no drawn one, less that against as '
    'many real ones'
  ),
  'gate drawn_copies': 'share of drawn images that copy a training image',
  'gate completion': 'share of the error saved against the nearest image',
  'gate shadow_bits': 'bits per value that images cost more, in the shadow run',
  'gate shadow_completion': 'share of the error saved, in the shadow run',
  'gate found@images': 'share of the anomalies found',
  'gate shadow_found@images': 'share of the anomalies found, in the shadow run',
  'gate most_milliseconds@images': 'milliseconds of an image, one at a time',
  'fact images': 'images to learn from',
  'fact judged': 'images held out to judge by',
  'fact replayed': 'images of the shadow run',
  'fact anomalies': 'anomalous images',
  'fact classes': 'classes',
  'fact smallest_class': 'images of the smallest class',
  'fact largest_class': 'images of the largest class',
  'fact uniform': 'bits per value: if every value were equally likely',
  'fact forest': 'bits per value: random forest',
  'fact enough@images': 'images after which more bring little',
  'fact incidents@images': 'anomalous images',
  'fact incidents_found@images': 'anomalous images found',
  'fact weeks@images': 'weeks that as many normal images take',
  'fact threshold@images': 'bits per value from which there is an alarm',
  'fact held_bits': 'bits per value: images held out',
  'fact train_bits': 'bits per value: images that were learnt from',
  'fact drawn_bits': 'bits per value: images that the model drew',
  'fact strange': 'share of drawn images that are like none learnt from',
  'fact strange_held': 'the same of images held out',
  'fact missed': 'share of images held out that are like none drawn',
  'fact missed_train': 'the same, like none of as many learnt from',
  'fact shadow_bits': 'bits per value: images of the shadow run',
  'fact gain': 'share of the error that is saved',
  'picture train': 'Some of the images that are learnt from.',
  'picture classes': 'How many images each class has.',
  'picture module@images': (
    'Learning curve: bits per value of images held out against the images that '
    'were learnt from.'
  ),
  'picture images': 'Images that the model made up.',
  'picture completed': (
    'In turn: an image, and the same with its lower half made up.'
  ),
  'picture bits': (
    'Bits per value, how often. Grey: images that were learnt from. Blue: held '
    'out. Black: drawn by the model. Red: anomalies. Where grey and blue lie '
    'apart, images were learnt by heart.'
  ),
  'picture worst_images': 'The most surprising images held out.',
  'picture replay': (
    'Bits per value of the images in their order; dashed is the threshold.'
  ),
  'roi none': (
    'Not computed: it follows from incidents, and the task is not to find any. '
    'What a made-up image is worth has to be judged by those who use it.'
  ),
  'risk 0@images': (
    'The criteria say what held for these images. Others were not tested.'
  ),
  'risk 1@images': (
    'Images are scaled down to a small side. What can be seen only in large '
    'ones is not judged here.'
  ),
  'risk 2@images': (
    'Intervals take images as independent. Photographs of one thing are not, '
    'and make them too narrow.'
  ),
  'risk 3@images': (
    'After a change of camera, light or product the model has to learn again.'
  ),
  'risk 4@images': (
    'Distances of drawn images are of simple features, and not comparable with '
    'published ones. Look at the images, too.'
  ),
  'step 0@images': (
    'Run it beside the present way for some weeks, without anybody relying on '
    'it; compare with the shadow run above.'
  ),
  'step 1@images': (
    'Name who looks at what the model puts out, and where they note whether it '
    'was right.'
  ),
  'step 2@images': (
    'Watch the bits of new images: where they rise, images have changed.'
  ),
  'step 4@images': (
    'To roll back, go back to the folder of the model before: it holds all '
    'that is needed. Keep the present way running until then.'
  ),
  'term level@images': (
    'Level: a part of the model. Level 0 sees a whole image, level 1 a patch '
    'of a few pixels.'
  ),
  'term window@images': (
    'Value: the brightness of a pixel, or of a colour of it.'
  ),
  'term score@images': (
    'Distance: how far drawn images are from real ones on the whole, by the '
    'Fréchet distance of principal components. Alike are images that are no '
    'further apart than an image and the third nearest to it.'
  ),
}
